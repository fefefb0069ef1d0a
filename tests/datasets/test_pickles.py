from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from convoy.datasets.pickles import read_python_batch, read_python_names
from convoy.errors import DataError

PIXELS = np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072)


def _written_by_python_2() -> bytes:
    """The published files' own opcodes: protocol 2, byte strings, numpy.core, a SHORT_BINSTRING."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + text(b"b") + b"tR"
        b"(K\x01K\x02M" + struct.pack("<H", 3072) + b"\x86"
        b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + struct.pack("<i", PIXELS.size) + PIXELS.tobytes() + b"tb"
    )
    return (
        b"\x80\x02}(" + text(b"data") + array + text(b"labels") + b"](K\x06K\x09e"
        + text(b"batch_label") + text(b"training batch 1 of 5") + text(b"filenames")
        + b"](" + text(b"a.png") + text(b"b.png") + b"eu."
    )  # fmt: skip


def test_a_file_as_python_2_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(_written_by_python_2())
    pixels, labels = read_python_batch(path)
    assert np.array_equal(pixels.numpy(), PIXELS)
    assert labels.tolist() == [6, 9]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("keys", [(b"data", b"labels"), ("data", "labels")])
def test_a_file_as_python_3_writes_it(
    tmp_path: Path, protocol: int, order: str, keys: tuple[object, object]
) -> None:
    path = tmp_path / "data_batch_1"
    content = {keys[0]: np.array(PIXELS, order=order), keys[1]: [3, 4]}  # type: ignore[call-overload]
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    pixels, labels = read_python_batch(path)
    assert np.array_equal(pixels.numpy(), PIXELS)
    assert pixels.is_contiguous()
    assert labels.tolist() == [3, 4]


class _RunsACommand:
    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.made}",)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path, protocol: int) -> None:
    made = tmp_path / "made"
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({"data": _RunsACommand(made)}, protocol=protocol))
    with pytest.raises(DataError, match=r"data_batch_1: the pickle asks for (posix|nt)\.system"):
        read_python_batch(path)
    assert not made.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(V1\ntR.",
        b"c__builtin__\neval\n(V1\ntR.",
        b"cnumpy\nfromfile\n(V/etc/hostname\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
        b"c_codecs\nencode\n(Vx\nVzlib_codec\ntR.",
    ],
)
def test_other_ways_in_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(DataError, match="the pickle asks for"):
        read_python_batch(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "expected a pickled dict, found list"),
        ({}, "expected 'data' to be an array .* found NoneType"),
        ({"data": PIXELS[:, :5], "labels": [1, 2]}, r"found one of \(2, 5\)"),
        ({"data": PIXELS.astype(np.int64), "labels": [1, 2]}, "an array of 'i8', expected bytes"),
        ({"data": np.array([None]), "labels": [1]}, "an array of 'O8'"),
        ({"data": PIXELS}, "expected 'labels' to be a list"),
        ({"data": PIXELS, "labels": [1, 2.5]}, "expected 'labels' to be a list"),
        ({"data": PIXELS, "labels": [1]}, "found 1 labels and 2 images"),
        ({"data": PIXELS[:0], "labels": []}, "found 0 labels and 0 images"),
        ({"data": PIXELS, "labels": [1, 2**70]}, "a label is out of range"),
    ],
)
def test_pickles_of_other_things(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        read_python_batch(path)
    assert str(path) in str(caught.value)


def test_a_shape_that_belies_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    content = _written_by_python_2().replace(b"(K\x01K\x02M", b"(K\x01K\x03M")
    path.write_bytes(content.replace(b"K\x06K\x09e", b"K\x06K\x09K\x09e"))
    with pytest.raises(
        DataError, match=r"expected 9216 bytes of pixels for \[3, 3072\], found 6144"
    ):
        read_python_batch(path)


@pytest.mark.parametrize("length", [0, 1, 40, 3000, -1])
def test_a_truncated_pickle_says_how_much_there_is(tmp_path: Path, length: int) -> None:
    path = tmp_path / "data_batch_1"
    content = _written_by_python_2()[:length]
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_python_batch(path)
    assert f"{path}: damaged, or not a pickle" in str(caught.value)
    assert f"({len(content)} bytes found)" in str(caught.value)


def test_class_names(tmp_path: Path) -> None:
    path = tmp_path / "batches.meta"
    path.write_bytes(pickle.dumps({b"label_names": [b"cat", b"dog"]}))
    assert read_python_names(path) == ("cat", "dog")
    path.write_bytes(pickle.dumps({b"label_names": 3}))
    with pytest.raises(DataError, match="expected 'label_names' to be a list, found int"):
        read_python_names(path)
