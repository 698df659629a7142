"""Getting public data: GalaxiesML from Zenodo, HSC coadds from the survey's archive with one's own account."""

from __future__ import annotations

import logging
import netrc
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import pooch
import requests
from tqdm.auto import tqdm

from skylib.bands import canonical_band

log = logging.getLogger(__name__)

ZENODO = "https://zenodo.org"
HSC_ARCHIVE = "https://hsc-release.mtk.nao.ac.jp"

# Name: (Zenodo record, {part: file}). Do et al. 2024, arXiv:2410.00271.
ZENODO_SETS = {
    "galaxiesml": (
        "11117528",
        {
            f"{size}-{part}": f"5x{size}x{size}_{part}_with_morphology.hdf5"
            for size in (64, 127)
            for part in ("training", "validation", "testing")
        },
    ),
}
HSC_RERUNS = ("pdr3_wide", "pdr3_dud_rev")
HSC_USER, HSC_PASSWORD = "HSC_SSP_USER", "HSC_SSP_PASSWORD"  # names of environment variables
_TRIES, _CHUNK = 4, 2**16  # bytes: at most so much of what came before a connection broke is lost
_PAUSE = 2.0  # s before the second try; doubled for each that follows
T = TypeVar("T")


def fetch_zenodo(
    name: str,
    directory: str | Path,
    *,
    parts: Sequence[str] = ("64-training", "64-validation", "64-testing"),
    server: str = ZENODO,
) -> list[Path]:
    """Fetch a public data set from Zenodo.

    Files that exist already and are whole are not fetched again; interrupted downloads resume. Each file is
    checked against the checksum that Zenodo states, and takes its name only then.

    Parameters
    ----------
    name : str
        A row of `ZENODO_SETS`.
    directory : path
    parts : sequence of str
        Of the set.
    server : str

    Returns
    -------
    list of Path

    Raises
    ------
    ValueError
        If the set or a part is unknown, or the checksum is wrong.
    OSError
        If the server cannot be reached, or refuses.
    """
    if name not in ZENODO_SETS:
        raise ValueError(f"unknown data set {name!r}: known are {', '.join(ZENODO_SETS)}")
    record, files = ZENODO_SETS[name]
    if unknown := [part for part in parts if part not in files]:
        raise ValueError(f"unknown parts of {name}: {', '.join(unknown)}; known are {', '.join(files)}")
    url = f"{server}/api/records/{record}"
    stated = {entry["key"]: entry["checksum"] for entry in _ask(url).json()["files"]}
    paths = []
    for part in parts:
        if (file := files[part]) not in stated:
            raise OSError(f"{url}: holds no file {file}; it holds {', '.join(stated)}")
        found = pooch.retrieve(
            f"{server}/records/{record}/files/{file}",
            stated[file],
            fname=file,
            path=directory,
            downloader=_Resuming(Path(directory) / file),
        )
        paths.append(Path(found))
    return paths


def fetch_hsc_tiles(
    directory: str | Path,
    *,
    tract: int,
    patches: Sequence[str],
    bands: Sequence[str] = ("g", "r", "i", "z", "y"),
    rerun: str = "pdr3_wide",
    server: str = HSC_ARCHIVE,
) -> list[Path]:
    """Fetch coadds of the Hyper Suprime-Cam survey, PDR3, with your own account of its archive.

    Name and password come from the variables ``HSC_SSP_USER`` and ``HSC_SSP_PASSWORD``, or from ``~/.netrc``.

    Parameters
    ----------
    directory : path
    tract : int
    patches : sequence of str
        As in ``"4,5"``.
    bands : sequence of str
    rerun : str
        One of `HSC_RERUNS`.
    server : str

    Returns
    -------
    list of Path
        Bands that the archive does not have of a patch are logged and left out.

    Raises
    ------
    PermissionError
        If there are no credentials, or the server refuses them.
    FileNotFoundError
        If the archive has none of the files.
    OSError
        If the server cannot be reached or refuses, or a file is not whole.
    """
    if not patches or not bands:
        raise ValueError("no patch or no band asked for")
    if rerun not in HSC_RERUNS:
        raise ValueError(f"rerun={rerun!r}: one of {', '.join(map(repr, HSC_RERUNS))}")
    for patch in patches:
        if not all(number.isdigit() for number in patch.split(",")) or patch.count(",") != 1:
            raise ValueError(f"patch {patch!r}: must read as in '4,5'")
    login = _credentials(server)
    paths, missing = [], []
    for patch in patches:
        for band in map(canonical_band, bands):
            filter_name = band if band.startswith("NB") else f"HSC-{band.upper()}"
            file = f"calexp-{filter_name}-{tract}-{patch}.fits"
            folder = f"{server}/archive/filetree/{rerun}/deepCoadd-results/{filter_name}/{tract}"
            url = f"{folder}/{quote(patch)}/{quote(file)}"
            path = Path(directory) / file
            if not path.exists():
                try:
                    download(url, path, check=_check_fits, auth=login)
                except FileNotFoundError:
                    log.warning("%s: the archive has no such file", url)
                    missing.append(url)
                    continue
            paths.append(path)
    if not paths:
        raise FileNotFoundError(f"the archive has none of {len(missing)} files, such as {missing[0]}")
    return paths


def download(
    url: str, path: Path, *, auth: tuple[str, str] | None = None, check: Callable[[Path], None] | None = None
) -> None:
    """Fetch a file, which takes its name when it is whole; interrupted downloads resume.

    Parameters
    ----------
    url : str
    path : Path
    auth : (str, str), optional
        Name and password. They are sent to this server alone, not where it redirects to.
    check : callable, optional
        Given the whole file before it takes its name; raises if something is wrong with it, and it is removed.

    Raises
    ------
    PermissionError, FileNotFoundError, OSError
        As the server answers. It is asked up to four times.
    """
    partial = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _patiently(lambda: _continue(url, partial, auth), url)
    except _Unwell as error:
        raise OSError(f"{error}; what came is kept in {partial}, and the next call resumes there") from error
    try:
        if check is not None:
            check(partial)
    except BaseException:
        partial.unlink()
        raise
    os.replace(partial, path)


class _Unwell(OSError):
    """The server says that it cannot answer now."""


class _Resuming:
    """What pooch downloads with: keeps what came of an interrupted file, and resumes there."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + ".whole")

    def __call__(self, url: str, output_file: Any, pooch: Any) -> None:
        download(url, self._path)
        os.replace(self._path, output_file)


def _continue(url: str, partial: Path, auth: tuple[str, str] | None) -> None:
    """Fetch what is missing of a file."""
    n_bytes = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={n_bytes}-"} if n_bytes else {})
    with requests.get(url, headers=headers, auth=auth, stream=True, timeout=60) as answer:
        if answer.status_code == 416 and answer.headers.get("Content-Range", "").endswith(f"/{n_bytes}"):
            return  # all of it is here
        if answer.status_code == 416:
            partial.unlink()
            raise _Unwell(f"{url}: {n_bytes} bytes were here, more than the file has; starting again")
        _raise_for(answer, url)
        if answer.status_code != 206:  # the server starts from the beginning
            n_bytes = 0
        total = n_bytes + int(answer.headers["Content-Length"]) if "Content-Length" in answer.headers else None
        name = partial.name.removesuffix(".part").removesuffix(".whole")
        bar = tqdm(desc=name, total=total, initial=n_bytes, unit="B", unit_scale=True)
        with open(partial, "ab" if n_bytes else "wb") as file, bar:
            for chunk in answer.iter_content(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and partial.stat().st_size != total:
        raise _Unwell(f"{partial.stat().st_size} of {total} bytes came")


def _ask(url: str) -> requests.Response:
    def once() -> requests.Response:
        answer = requests.get(url, timeout=60)
        _raise_for(answer, url)
        return answer

    return _patiently(once, url)


def _patiently(ask: Callable[[], T], url: str) -> T:
    """Ask up to four times, with longer and longer pauses, as long as the server is unwell or out of reach."""
    for attempt in range(_TRIES):
        try:
            return ask()
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, _Unwell) as error:
            why = error
            if attempt < _TRIES - 1:
                log.warning("%s: %s; trying again", url, error)
                time.sleep(_PAUSE * 2**attempt)
    raise _Unwell(f"{url}: {why} (asked {_TRIES} times)") from why


def _raise_for(answer: requests.Response, url: str) -> None:
    code, why = answer.status_code, f"{url}: the server answers {answer.status_code} {answer.reason}"
    if code in (401, 403):
        raise PermissionError(f"{why}: name or password is wrong, or the account may not see this")
    if code == 404:
        raise FileNotFoundError(why)
    if code >= 500 or code == 429:
        raise _Unwell(why)
    if code >= 400:
        raise OSError(why)


def _credentials(server: str) -> tuple[str, str]:
    if os.environ.get(HSC_USER) and os.environ.get(HSC_PASSWORD):
        return os.environ[HSC_USER], os.environ[HSC_PASSWORD]
    host = urlsplit(server).hostname or server
    try:
        entry = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except FileNotFoundError:
        entry = None
    except netrc.NetrcParseError as error:
        raise PermissionError(f"netrc cannot be read: {error}") from error
    if entry is None:
        raise PermissionError(
            f"no credentials for {host}: set {HSC_USER} and {HSC_PASSWORD}, or add 'machine {host} login NAME "
            "password …' to ~/.netrc; an account is free, at the survey's web site"
        )
    return entry[0], entry[2] or ""


def _check_fits(path: Path) -> None:
    with open(path, "rb") as file:
        start = file.read(9)
    if start != b"SIMPLE  =":
        raise OSError(f"{path}: what came is no FITS file, but begins with {start!r}")
