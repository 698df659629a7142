"""Opening FITS files of any origin: decompressed and checked as a whole before anything is believed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import mmap
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}  # by how files begin
_BLOCK, _MAX_HEADER_BLOCKS, _MAX_HDUS = 2880, 3000, 500
_MAX_BYTES = 8 * 2**30  # of a decompressed file, and of an image
_VALUE = re.compile(rb"^([A-Z0-9_-]+) *= +('?[^'/]*)")
_FILTERS = threading.RLock()  # of warnings


@contextmanager
def opened(path: Path, what: str = "a FITS tile") -> Iterator[fits.HDUList]:
    """Open a FITS file, compressed or not; `what` it is to be is for the message.

    Raises
    ------
    OSError
        If it is no FITS file, truncated or damaged, as far as its structure and checksums (of gzip,
        bzip2, xz, ``CHECKSUM`` or ``DATASUM``) tell, or if what is done with it fails; the message names it.
    """
    try:
        source: Any = path
        with open(path, "rb") as file:
            first = file.read(6)
        opener = next((_OPENERS[mark] for mark in _OPENERS if first.startswith(mark)), None)  # names can be wrong
        if opener is not None:
            with opener(path) as packed:
                content = packed.read(_MAX_BYTES)
                if packed.read(1):
                    raise ValueError(f"more than {_MAX_BYTES} bytes when decompressed")
            _check(content)
            source = io.BytesIO(content)
        else:
            with open(path, "rb") as file:
                if not path.stat().st_size:
                    raise ValueError("the file is empty")
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
                    _check(whole)
        with unwarned(fits.verify.VerifyWarning):
            hdus = fits.open(source)
        with hdus:
            yield hdus
    except _Refused as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # damage raises errors of many kinds in the layers below
        raise OSError(f"{path}: cannot be read as {what}: {error}") from error


@contextmanager
def unwarned(category: type[Warning]) -> Iterator[None]:
    """Ignore warnings of a category, one thread at a time: Python has one list of filters for all threads."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", category)
        yield


class _Refused(ValueError):
    """The file is whole, but cannot be used."""


def refuse(why: str) -> ValueError:
    """Return the error of a sound file whose content cannot be used; `opened` adds the name of the file."""
    return _Refused(why)


def _check(content: bytes | mmap.mmap) -> None:
    """Walk through the headers; raise ValueError where the file is not what they say."""
    start, size = 0, len(content)
    for number in range(_MAX_HDUS):
        first = content[start : start + 10]
        if not first.startswith(b"SIMPLE  =" if number == 0 else b"XTENSION="):
            if number and not content[start : start + _BLOCK].strip(b"\0 "):
                return  # padding
            raise ValueError(f"HDU {number} begins with {bytes(first)!r}")
        begin, (cards, start) = start, _cards(content, start, number)
        n_bytes = _data_bytes(cards, number)
        if start + n_bytes > size:
            raise ValueError(f"truncated: HDU {number} needs {start + n_bytes} bytes, the file has {size}")
        if cards.get(b"CHECKSUM", b"").strip(b" '"):  # of header and data
            wrong = _sum(content, begin, start - begin + n_bytes) not in (0, 2**32 - 1)
        else:
            stated = cards.get(b"DATASUM", b"").strip(b" '")
            wrong = bool(stated and n_bytes) and _sum(content, start, n_bytes) != int(stated)
        if wrong:
            raise ValueError(
                f"the checksum of HDU {number} is wrong; where it was changed on purpose, write it with checksum=True"
            )
        start += -(-n_bytes // _BLOCK) * _BLOCK
        if start >= size:
            return
    raise ValueError(f"more than {_MAX_HDUS} HDUs")


def _cards(content: bytes | mmap.mmap, start: int, number: int) -> tuple[dict[bytes, bytes], int]:
    """Return the values of a header as they stand there, and where the data begin."""
    cards: dict[bytes, bytes] = {}
    for block in range(start, start + _MAX_HEADER_BLOCKS * _BLOCK, _BLOCK):
        text = content[block : block + _BLOCK]
        for at in range(0, len(text), 80):
            card = bytes(text[at : at + 80])
            if card.rstrip() == b"END":
                return cards, block + _BLOCK
            if match := _VALUE.match(card):
                cards.setdefault(match[1], match[2].strip())
        if len(text) < _BLOCK:
            break
    raise ValueError(f"the header of HDU {number} has no end")


def _data_bytes(cards: dict[bytes, bytes], number: int) -> int:
    """Return how many bytes of data follow a header."""

    def integer(key: str, default: int | None = None) -> int:
        text = cards.get(key.encode())
        if text is None and default is not None:
            return default
        try:
            return int(text or b"")
        except ValueError:
            raise ValueError(f"HDU {number}: {key}={text!r} must be an integer") from None

    def product(prefix: str) -> int:
        axes = [integer(f"{prefix}NAXIS{i + 1}") for i in range(integer(f"{prefix}NAXIS"))]
        if len(axes) > 20 or any(n < 0 for n in axes):
            raise ValueError(f"HDU {number}: axes of {axes} pixels")
        return int(np.prod([float(n) for n in axes])) if axes else 0

    bits = integer("BITPIX")
    if bits not in (8, 16, 32, 64, -32, -64):
        raise ValueError(f"HDU {number}: BITPIX={bits} is not allowed")
    n_bytes = abs(bits) // 8 * integer("GCOUNT", 1) * (integer("PCOUNT", 0) + product(""))
    if b"ZNAXIS" in cards:
        if (size := product("Z") * abs(integer("ZBITPIX")) // 8) > _MAX_BYTES:
            raise ValueError(f"HDU {number}: an image of {size} bytes when decompressed")
        axes = [
            (integer(f"ZNAXIS{i + 1}"), integer(f"ZTILE{i + 1}", integer("ZNAXIS1") if i == 0 else 1))
            for i in range(integer("ZNAXIS"))
        ]
        if any(part < 1 for _, part in axes) or integer("NAXIS2") != int(np.prod([-(-n // part) for n, part in axes])):
            raise ValueError(f"HDU {number}: {integer('NAXIS2')} compressed parts do not make up the image")
    return n_bytes


def _sum(content: bytes | mmap.mmap, start: int, n_bytes: int) -> int:
    """Return the ones' complement sum of big-endian 32-bit words."""
    total, padded = 0, -(-n_bytes // _BLOCK) * _BLOCK
    for at in range(start, start + padded, 2**24):
        part = bytes(content[at : min(at + 2**24, start + padded)])
        total += int(np.frombuffer(part[: len(part) // 4 * 4], ">u4").sum(dtype=np.uint64))
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total
