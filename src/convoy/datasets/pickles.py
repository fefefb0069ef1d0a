"""CIFAR-10's python version, read without running what a pickle may ask to run.

A pickle can name any function and have it called with any arguments. These
files need byte strings, lists, dicts and one array of bytes, so the unpickler
here answers to the few names by which NumPy pickles an array with stand-ins
of its own, and refuses every other name. Not even NumPy's own constructors
are called: they trust the layout that a file claims.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from convoy.errors import DataError

_PIXELS = 3 * 32 * 32
_UNSIGNED_BYTE = ("u1", "|u1", "uint8")


def read_python_batch(path: Path) -> tuple[Tensor, Tensor]:
    """One batch file: uint8 [n, 3072] and int64 [n]. Raises DataError."""
    content = _load(path)
    data, labels = content.get("data"), content.get("labels")
    if not isinstance(data, _Array) or data.shape[1:] != (_PIXELS,):
        found = f"one of {data.shape}" if isinstance(data, _Array) else type(data).__name__
        raise DataError(f"{path}: expected 'data' to be an array [n, {_PIXELS}], found {found}")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{path}: expected 'labels' to be a list of whole numbers")
    if len(labels) != data.shape[0] or not labels:
        raise DataError(
            f"{path}: expected as many labels as images, found {len(labels)} labels and "
            f"{data.shape[0]} images"
        )
    try:
        targets = torch.tensor(labels, dtype=torch.int64)
    except (OverflowError, RuntimeError, ValueError) as error:
        raise DataError(f"{path}: a label is out of range: {error}") from error
    return torch.from_numpy(data.numpy(path)), targets


def read_python_names(path: Path) -> tuple[str, ...]:
    """The class names in batches.meta. Raises DataError."""
    names = _load(path).get("label_names")
    if not isinstance(names, list):
        raise DataError(
            f"{path}: expected 'label_names' to be a list, found {type(names).__name__}"
        )
    return tuple(_text(name) for name in names)


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            # "bytes", because the published files were written by Python 2.
            content = _Unpickler(file, encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can fail in any way
        size = path.stat().st_size if path.exists() else 0
        raise DataError(
            f"{path}: damaged, or not a pickle of CIFAR-10 ({size} bytes found): "
            f"{type(error).__name__}: {error}; get it again"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a pickled dict, found {type(content).__name__}")
    return {_text(key): value for key, value in content.items()}


def _text(name: object) -> str:
    return name.decode("latin-1") if isinstance(name, bytes) else str(name)


@final
class _ByteType:
    """Stands in for numpy.dtype, of which only unsigned bytes are wanted."""

    def __init__(self, name: object, *_flags: object) -> None:
        if _text(name) not in _UNSIGNED_BYTE:
            raise DataError(f"the pickle holds an array of {_text(name)!r}, expected bytes (u1)")

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment: bytes have neither."""


@final
class _Array:
    """Stands in for numpy.ndarray: the shape and bytes that the pickle gives, as they are."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.fortran, self.raw = False, b""

    def __setstate__(self, state: Any) -> None:
        _version, shape, element, fortran, raw = state
        self.fill(raw, element, shape, fortran)

    def fill(self, raw: Any, element: Any, shape: Any, fortran: Any) -> None:
        if not isinstance(element, _ByteType) or not isinstance(raw, (bytes, bytearray)):
            raise DataError("the pickle holds an array that is not of bytes")
        self.shape = tuple(int(size) for size in shape)
        self.fortran, self.raw = bool(fortran), bytes(raw)

    def numpy(self, path: Path) -> np.ndarray:
        """A copy in C order. Raises DataError unless the shape takes all the bytes."""
        expected = math.prod(self.shape)
        if min(self.shape) < 0 or expected != len(self.raw):
            raise DataError(
                f"{path}: expected {expected} bytes of pixels for {list(self.shape)}, found "
                f"{len(self.raw)}"
            )
        flat = np.frombuffer(self.raw, dtype=np.uint8)
        return np.array(flat.reshape(self.shape, order="F" if self.fortran else "C"), order="C")


def _reconstruct(_type: object, _shape: object, _code: object) -> _Array:
    """Begins an array; its contents follow by __setstate__."""
    return _Array()


def _from_buffer(raw: Any, element: Any, shape: Any, order: Any) -> _Array:
    """How pickle protocol 5 writes an array."""
    array = _Array()
    array.fill(raw, element, shape, order == "F")
    return array


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in old protocols; any other codec would be a way in."""
    if encoding not in ("latin1", "latin-1"):
        raise DataError(f"the pickle asks for the codec {encoding!r}, which is not needed")
    return text.encode("latin-1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _ByteType,
    ("_codecs", "encode"): _encode,
    # before and since NumPy 2
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
}


@final
class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise DataError(
                f"the pickle asks for {module}.{name}, which CIFAR-10 does not need; it was not "
                "run. Get the file from its official address"
            ) from None
