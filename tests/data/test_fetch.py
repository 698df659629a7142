"""Against a server on loopback; the real archives are not asked."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from skylib.__main__ import main
from skylib.data import fetch

FILE = "5x64x64_testing_with_morphology.hdf5"
CONTENT = np.random.default_rng(0).bytes(3_000_000)
FITS = b"SIMPLE  =                    T" + bytes(2850)


class Server(ThreadingHTTPServer):
    """Serves files with ranges; `broken` answers are cut short, `codes` are given before the true answer."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.codes, self.broken, self.asked, self.login = {}, [], 0, [], None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        s, path = self.server, self.path
        s.asked.append((path, self.headers.get("Range")))
        login = f"Basic {base64.b64encode(s.login.encode()).decode()}" if s.login else None
        if login and self.headers.get("Authorization") != login:
            self.send_error(401)
        elif s.codes:
            self.send_error(s.codes.pop(0))
        elif path not in s.files:
            self.send_error(404)
        else:
            content, start = s.files[path], 0
            if wanted := self.headers.get("Range"):
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.end_headers()
                    return
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            rest = content[start:]
            if s.broken and not path.startswith("/api"):
                s.broken -= 1
                rest = rest[: len(rest) // 2]
            self.wfile.write(rest)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch, "_PAUSE", 0.01)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def zenodo(server):
    stated = [{"key": FILE, "checksum": f"md5:{hashlib.md5(CONTENT).hexdigest()}"}]
    server.files["/api/records/11117528"] = json.dumps({"files": stated}).encode()
    server.files[f"/records/11117528/files/{FILE}"] = CONTENT
    return server


def get(zenodo, folder):
    return fetch.fetch_zenodo("galaxiesml", folder, parts=["64-testing"], server=zenodo.url)


def test_a_file_is_fetched_once_and_checked(zenodo, tmp_path):
    (path,) = get(zenodo, tmp_path)
    assert path == tmp_path / FILE
    assert path.read_bytes() == CONTENT
    assert get(zenodo, tmp_path) == [path]
    assert [asked for asked, _ in zenodo.asked].count(f"/records/11117528/files/{FILE}") == 1
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def test_what_was_interrupted_goes_on_where_it_stood(zenodo, tmp_path):
    zenodo.broken = 2
    (path,) = get(zenodo, tmp_path)
    assert path.read_bytes() == CONTENT
    starts = [int(asked.strip("bytes=-")) for _, asked in zenodo.asked[2:]]
    assert 1_400_000 < starts[0] <= 1_500_000
    assert 2_100_000 < starts[1] <= 2_250_000


def test_an_interrupted_call_is_continued_by_the_next(zenodo, tmp_path):
    zenodo.broken = 4
    with pytest.raises(OSError, match=r"\(asked 4 times\); what came is kept in .*\.part"):
        get(zenodo, tmp_path)
    assert not (tmp_path / FILE).exists()
    (path,) = get(zenodo, tmp_path)
    assert path.read_bytes() == CONTENT
    assert int(zenodo.asked[-1][1].strip("bytes=-")) > 2_600_000


def test_what_is_longer_than_the_file_is_begun_anew(zenodo, tmp_path):
    (tmp_path / f"{FILE}.whole.part").write_bytes(bytes(len(CONTENT) + 5))
    assert get(zenodo, tmp_path)[0].read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_no_file(zenodo, tmp_path):
    zenodo.files[f"/records/11117528/files/{FILE}"] = CONTENT[:-1] + b"x"
    with pytest.raises(ValueError, match="hash"):
        get(zenodo, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unknown_sets_parts_and_files_are_named(zenodo, tmp_path):
    with pytest.raises(ValueError, match="unknown data set 'sdss': known are galaxiesml"):
        fetch.fetch_zenodo("sdss", tmp_path)
    with pytest.raises(ValueError, match="unknown parts of galaxiesml: 32-all; known are 64-training"):
        fetch.fetch_zenodo("galaxiesml", tmp_path, parts=["32-all"])
    with pytest.raises(
        OSError, match="holds no file 5x127x127_training_with_morphology.hdf5; it holds 5x64x64_testing"
    ):
        fetch.fetch_zenodo("galaxiesml", tmp_path, parts=["127-training"], server=zenodo.url)


def test_a_server_that_is_unwell_is_asked_again_but_not_for_ever(zenodo, tmp_path):
    zenodo.codes = [500, 503, 429]
    assert get(zenodo, tmp_path)[0].read_bytes() == CONTENT
    (tmp_path / FILE).unlink()
    zenodo.codes, zenodo.asked = [500] * 9, []
    with pytest.raises(OSError, match="answers 500 .*asked 4 times"):
        get(zenodo, tmp_path)
    assert len(zenodo.asked) == 4


@pytest.fixture
def archive(server, monkeypatch):
    for band in ("HSC-G", "NB0921"):
        name = f"calexp-{band}-9813-4%2C5.fits"
        server.files[f"/archive/filetree/pdr3_wide/deepCoadd-results/{band}/9813/4%2C5/{name}"] = FITS
    server.login = "anna:secret"
    monkeypatch.setenv("HSC_SSP_USER", "anna")
    monkeypatch.setenv("HSC_SSP_PASSWORD", "secret")
    return server


def test_coadds_come_with_the_users_own_account(archive, tmp_path, caplog):
    wanted = {"tract": 9813, "patches": ["4,5"], "bands": ["g", "r", "NB0921"], "server": archive.url}
    paths = fetch.fetch_hsc_tiles(tmp_path, **wanted)
    assert [path.name for path in paths] == ["calexp-HSC-G-9813-4,5.fits", "calexp-NB0921-9813-4,5.fits"]
    assert "HSC-R" in caplog.text  # which the archive does not have
    asked = len(archive.asked)
    assert fetch.fetch_hsc_tiles(tmp_path, **wanted | {"bands": ["g"]}) == paths[:1]
    assert len(archive.asked) == asked
    assert all("secret" not in path.read_bytes().decode(errors="ignore") for path in tmp_path.iterdir())


def test_what_the_archive_refuses(archive, tmp_path, monkeypatch):
    def get(**wanted):
        return fetch.fetch_hsc_tiles(
            tmp_path, **{"tract": 9813, "patches": ["4,5"], "bands": ["g"], "server": archive.url} | wanted
        )

    with pytest.raises(FileNotFoundError, match="none of 1 files, such as .*HSC-Z"):
        get(bands=["z"])
    with pytest.raises(ValueError, match="patch '45': must read as in '4,5'"):
        get(patches=["45"])
    with pytest.raises(ValueError, match="no patch or no band"):
        get(patches=[])
    with pytest.raises(ValueError, match="rerun='pdr9'"):
        get(rerun="pdr9")
    archive.files = dict.fromkeys(archive.files, b"<html>log in</html>")
    with pytest.raises(OSError, match="what came is no FITS file"):
        get()
    archive.login = "anna:other"
    with pytest.raises(PermissionError, match="answers 401 .*name or password is wrong"):
        get()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.delenv("HSC_SSP_USER")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(PermissionError, match="no credentials for 127.0.0.1: set HSC_SSP_USER"):
        get()


def test_credentials_from_netrc(archive, tmp_path, monkeypatch):
    monkeypatch.delenv("HSC_SSP_PASSWORD")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login anna password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert fetch.fetch_hsc_tiles(tmp_path, tract=9813, patches=["4,5"], bands=["g"], server=archive.url)


def test_the_command_line_never_takes_a_password(archive, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        fetch.fetch_hsc_tiles, "__kwdefaults__", fetch.fetch_hsc_tiles.__kwdefaults__ | {"server": archive.url}
    )
    assert main(["fetch", "hsc-tiles", str(tmp_path), "--tract", "9813", "--patch", "4,5", "--bands", "g"]) == 0
    assert "calexp-HSC-G-9813-4,5.fits" in capsys.readouterr().out
    archive.login = "anna:other"
    (tmp_path / "calexp-HSC-G-9813-4,5.fits").unlink()
    assert main(["fetch", "hsc-tiles", str(tmp_path), "--tract", "9813", "--patch", "4,5", "--bands", "g"]) == 2
    assert "password is wrong" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["fetch", "hsc-tiles", "--help"])
    assert "--password" not in capsys.readouterr().out
