"""The IDX format: unsigned bytes in any number of dimensions, plain or gzipped.

    bytes 0-1   0 0
    byte  2     element type; 8 is unsigned byte, the only one read here
    byte  3     number of dimensions, n
    4 n bytes   the dimensions, big-endian 32-bit
    the rest    the elements, the last dimension changing fastest

Source: LeCun, Cortes & Burges, "The MNIST database of handwritten digits".
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convoy.datasets.base import shape_text
from convoy.errors import DataError

_UNSIGNED_BYTE = 8
_CHUNK_BYTES = 1 << 16


def read_idx(path: Path, num_dims: int) -> Tensor:
    """The elements, uint8, of a file that has `num_dims` dimensions.

    Raises DataError that names the file and what was expected and found: a
    wrong magic number, too few or too many bytes, damaged compression.
    """
    try:
        raw, damage = _read(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    note = f" ({damage})" if damage else ""
    header_bytes = 4 + 4 * num_dims
    if len(raw) < header_bytes:
        raise DataError(
            f"{path}: expected an IDX header of {header_bytes} bytes, found {len(raw)}{note}; "
            "get the file again"
        )
    magic = bytes((0, 0, _UNSIGNED_BYTE, num_dims))
    if raw[:4] != magic:
        raise DataError(
            f"{path}: expected the IDX magic number {magic.hex()} (unsigned bytes in {num_dims} "
            f"dimension(s)), found {raw[:4].hex()}{note}; is it another file?"
        )
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", num_dims, offset=4))
    expected = header_bytes + math.prod(shape)
    if len(raw) != expected or damage:
        raise DataError(
            f"{path}: expected {expected} bytes (a header of {header_bytes} and "
            f"{shape_text(shape)} elements), found {len(raw)}{note}; get the file again"
        )
    if math.prod(shape) == 0:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(raw, dtype=torch.uint8, offset=header_bytes).view(shape)


def _read(path: Path) -> tuple[bytearray, str]:
    """All bytes, decompressed if need be, and what was wrong with the compression."""
    content = bytearray(path.read_bytes())
    return _gunzip(content) if content[:2] == b"\x1f\x8b" else (content, "")


def _gunzip(packed: bytearray) -> tuple[bytearray, str]:
    """Everything up to where the data end or are damaged, which the gzip module would not keep."""
    raw = bytearray()
    member = zlib.decompressobj(zlib.MAX_WBITS | 16)
    for start in range(0, len(packed), _CHUNK_BYTES):
        chunk = bytes(packed[start : start + _CHUNK_BYTES])
        while chunk:
            if member.eof:  # gzip files may be strung together
                member = zlib.decompressobj(zlib.MAX_WBITS | 16)
            before = member.copy()
            try:
                raw += member.decompress(chunk)
            except zlib.error as error:
                return raw + _up_to_damage(before, chunk), f"the gzip data are damaged: {error}"
            chunk = member.unused_data
    return raw, "" if member.eof else "the gzip data end early"


def _up_to_damage(member: zlib._Decompress, chunk: bytes) -> bytearray:
    raw = bytearray()
    try:
        for place in range(len(chunk)):
            raw += member.decompress(chunk[place : place + 1])
    except zlib.error:
        return raw
    return raw
