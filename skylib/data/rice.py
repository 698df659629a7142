"""Images that `fpack` compressed, decoded without Python's lock, so that threads decode several at a time."""

from __future__ import annotations

import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from astropy.io import fits
from numba import types
from numba.extending import intrinsic

from skylib.data.fitsfile import unwarned

_DITHERS = {"NO_DITHER": 0, "SUBTRACTIVE_DITHER_1": 1, "SUBTRACTIVE_DITHER_2": 2}
_COLUMNS = {"COMPRESSED_DATA", "GZIP_COMPRESSED_DATA", "ZSCALE", "ZZERO"}
_ZERO = -(2**31) + 2  # stands for 0 exactly, in SUBTRACTIVE_DITHER_2
_NO_BLANK = 2**31  # no pixel has it
_u64 = np.uint64


def decode_rice(hdu: Any) -> np.ndarray | None:
    """Decode an image of floats whose rows were compressed by ``RICE_1``, as `fpack` does.

    The algorithm and the dithering are those of the FITS standard 4.0, sections 10.2 and 10.4.1. The pixels are those
    that astropy gives, in less than half of its time.

    Parameters
    ----------
    hdu : astropy.io.fits.CompImageHDU

    Returns
    -------
    ndarray of float32, shape (H, W), or None
        None where the image was compressed or scaled in another way, or its bytes are not in a file as they are.

    Raises
    ------
    ValueError
        If a row is damaged.
    """
    info = hdu.fileinfo()
    if not info or info["file"].compression or not Path(path := info["file"].name).is_file():
        return None
    with unwarned(fits.verify.VerifyWarning), fits.open(path, disable_image_compression=True) as tables:
        table = next(table for table in tables if table.fileinfo()["hdrLoc"] == info["hdrLoc"])
        header, columns = table.header, table.columns.dtype.newbyteorder(">")
    settings = {header[f"ZNAME{i}"]: header[f"ZVAL{i}"] for i in range(1, 10) if f"ZNAME{i}" in header}
    height, width = hdu.shape[-2:]
    dither = _DITHERS.get(header.get("ZQUANTIZ", "NO_DITHER"))
    kind = [header["ZCMPTYPE"], header["ZBITPIX"], header["ZNAXIS"], settings.get("BYTEPIX", 4)]
    by_rows = header.get("ZTILE1", width) == width and header.get("ZTILE2", 1) == 1
    known = {"COMPRESSED_DATA", "ZSCALE", "ZZERO"} <= set(columns.names) <= _COLUMNS
    scaled = not {"BSCALE", "BZERO", "BLANK"}.isdisjoint(header)  # what a pixel means, beyond the compression
    block = int(settings.get("BLOCKSIZE", 32))
    if kind != ["RICE_1", -32, 2, 4] or not (by_rows and known and 0 < block <= 1024) or scaled or dither is None:
        return None
    n_bytes = header["NAXIS1"] * height
    content = np.memmap(path, np.uint8, "r", info["datLoc"], (n_bytes + header["PCOUNT"],)).view(np.ndarray)
    rows, heap = content[:n_bytes].view(columns), content[header.get("THEAP", n_bytes) :]
    length, start = rows["COMPRESSED_DATA"].astype(np.int64).T.copy()
    if length.min() < 0 or start.min() < 0 or (start + length).max() > heap.size:
        raise ValueError("a compressed image refers to data beyond its end")
    image = np.empty((height, width), dtype=np.float32)
    scale, zero = (rows[name].astype(np.float64) for name in ("ZSCALE", "ZZERO"))
    blank, first = header.get("ZBLANK", _NO_BLANK), header.get("ZDITHER0", 1) - 1
    damaged = _decode(heap, start, length, scale, zero, blank, first, dither, _random(), block, image)
    if damaged >= 0:
        raise ValueError(f"row {damaged} of a compressed image is damaged")
    for row in np.flatnonzero(length == 0):  # what cannot be quantised, such as a row without data
        n, at = rows["GZIP_COMPRESSED_DATA"][row]
        pixels = zlib.decompressobj(wbits=31).decompress(heap[at : at + n].tobytes(), 4 * width)
        image[row] = np.frombuffer(pixels, dtype=">f4", count=width)
    return image


def _compiled(function: Any) -> Any:
    """Compile a function that does not hold Python's lock, and keep what was compiled where a folder can be written."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)


@cache
def _random() -> np.ndarray:
    """Return the 10,000 numbers of the FITS standard 4.0, appendix I."""
    numbers, seed = np.empty(10_000), 1
    for i in range(len(numbers)):
        seed = seed * 16807 % (2**31 - 1)
        numbers[i] = seed / (2**31 - 1)
    return numbers.astype(np.float32).astype(np.float64)


@_compiled
def _decode(
    heap: np.ndarray,
    start: np.ndarray,
    length: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray,
    blank: int,
    first: int,
    dither: int,
    random: np.ndarray,
    block: int,
    image: np.ndarray,
) -> int:
    """Decode all rows to `image`, and return the first that is damaged, or -1."""
    height, width = image.shape
    values = np.empty(width, dtype=np.int32)
    words = np.empty(length.max() // 4 + 2 * block + 8, dtype=np.uint64)
    for row in range(height):
        if length[row] == 0:
            continue
        if not _unpack(heap[start[row] : start[row] + length[row]], block, words, values):
            return row
        seed, column = (first + row) % random.size, 0
        while column < width:
            offset = int(random[seed] * 500)
            n = min(width - column, random.size - offset)
            part = slice(column, column + n)
            value, shift, pixel = values[part], random[offset : offset + n], image[row, part]
            for i in range(n):
                level = value[i] - shift[i] + 0.5 if dither else np.float64(value[i])
                pixel[i] = np.nan if value[i] == blank else level * scale[row] + zero[row]
                if dither == 2 and value[i] == _ZERO:
                    pixel[i] = 0
            column, seed = column + n, (seed + 1) % random.size
    return -1


def _count(_: Any, number: Any) -> Any:
    """Compile to the processor's instruction that counts the zeros at the top of a uint64."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], context.get_constant(types.boolean, False))

    return types.uint64(types.uint64), generate


_leading_zeros: Any = intrinsic(_count)


@_compiled
def _unpack(code: np.ndarray, block: int, words: np.ndarray, values: np.ndarray) -> bool:
    """Decode one row of differences to `values` (int32); return whether its bits sufficed.

    Bits that are not yet read stand at the top of `buffer`, 33 or more before each number is read. `words` (uint64) is
    memory for the code, 32 bits in each, and for zeros after it that the longest block does not exhaust.
    """
    words[:] = _u64(0)
    for byte in range(code.size):
        words[byte // 4] |= _u64(code[byte]) << _u64(24 - byte % 4 * 8)
    value, n, n_bits = np.int32(words[0]), _u64(values.size), _u64(8 * code.size)
    buffer, bits, at, i = words[1] << _u64(32), _u64(32), _u64(2), _u64(0)
    while i < n:
        if bits <= _u64(32):
            buffer, bits, at = buffer | words[at] << (_u64(32) - bits), bits + _u64(32), at + _u64(1)
        low = buffer >> _u64(59)  # how many bits of the differences stand as they are, plus one
        buffer, bits = buffer << _u64(5), bits - _u64(5)
        stop = min(i + _u64(block), n)
        if low == _u64(0):  # all pixels are equal
            while i < stop:
                values[i] = value
                i += _u64(1)
        while i < stop:
            if bits <= _u64(32):
                buffer, bits, at = buffer | words[at] << (_u64(32) - bits), bits + _u64(32), at + _u64(1)
            if low > _u64(25):  # not compressed
                difference = buffer >> _u64(32)
                buffer, bits = buffer << _u64(32), bits - _u64(32)
            else:  # the bits above as so many zeros and a one, then those below
                zeros, above = _leading_zeros(buffer), _u64(0)
                while zeros > _u64(7):
                    buffer, bits, above = buffer << _u64(8), bits - _u64(8), above + _u64(8)
                    if at * _u64(32) - bits > n_bits:
                        return False
                    if bits <= _u64(32):
                        buffer, bits, at = buffer | words[at] << (_u64(32) - bits), bits + _u64(32), at + _u64(1)
                    zeros = _leading_zeros(buffer)
                buffer <<= zeros
                below = buffer << _u64(1) >> _u64(1) >> (_u64(64) - low)
                difference = (above + zeros) << (low - _u64(1)) | below
                buffer, bits = buffer << low, bits - zeros - low
            # Differences of either sign are stored as 0, 1, 2, 3 for 0, -1, 1, -2.
            value = np.int32(value + (np.int32(difference >> _u64(1)) ^ -np.int32(difference & _u64(1))))
            values[i] = value
            i += _u64(1)
        if at * _u64(32) - bits > n_bits:
            return False
    return True
