from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from convoy.datasets.idx import read_idx
from convoy.errors import DataError

Encode = Callable[[np.ndarray], bytes]


@pytest.fixture
def content(idx_bytes: Encode) -> bytes:
    """5 images of 4x3: a header of 16 bytes and 60 more."""
    return idx_bytes(np.arange(60).reshape(5, 4, 3))


def test_the_layout_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes.fromhex("00000803 00000002 00000001 00000003 010203 fafbfc"))
    expected = torch.tensor([[[1, 2, 3]], [[250, 251, 252]]], dtype=torch.uint8)
    assert torch.equal(read_idx(path, 3), expected)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_plain_and_gzipped(
    tmp_path: Path, content: bytes, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "file"  # what it is, not what it is called, decides
    path.write_bytes(compress(content))
    assert torch.equal(read_idx(path, 3), torch.arange(60, dtype=torch.uint8).view(5, 4, 3))


def test_no_elements(tmp_path: Path, idx_bytes: Encode) -> None:
    path = tmp_path / "file"
    path.write_bytes(idx_bytes(np.empty((0, 28, 28))))
    assert read_idx(path, 3).shape == (0, 28, 28)


def _message(path: Path, num_dims: int = 3) -> str:
    with pytest.raises(DataError) as caught:
        read_idx(path, num_dims)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("cut", "found"), [(75, 75), (16, 16), (40, 40)])
def test_a_truncated_file_says_how_many_bytes(
    tmp_path: Path, content: bytes, cut: int, found: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content[:cut])
    assert f"expected 76 bytes (a header of 16 and 5x4x3 elements), found {found}" in _message(path)


def test_too_many_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content + b"\0")
    assert "expected 76 bytes (a header of 16 and 5x4x3 elements), found 77" in _message(path)


@pytest.mark.parametrize("length", [0, 3, 15])
def test_no_whole_header(tmp_path: Path, content: bytes, length: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(content[:length])
    assert f"an IDX header of 16 bytes, found {length}" in _message(path)


def test_a_wrong_magic_number(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\x89PNG" + content[4:])
    message = _message(path)
    assert "magic number 00000803" in message
    assert "found 89504e47" in message
    path.write_bytes(content)
    assert "magic number 00000801" in _message(path, num_dims=1)


def test_a_gzip_file_that_ends_early(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(content)[:-12])
    message = _message(path)
    assert "expected 76 bytes" in message
    assert "the gzip data end early" in message
    path.write_bytes(gzip.compress(content)[:-4])  # all there but for the check sum's end
    assert "the gzip data end early" in _message(path)
    path.write_bytes(gzip.compress(content)[:5])
    assert "found 0 (the gzip data end early)" in _message(path)


def test_a_gzip_file_that_is_damaged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.gz"
    packed = bytearray(gzip.compress(content))
    packed[-6] ^= 0xFF  # in the check sum
    path.write_bytes(packed)
    message = _message(path)
    assert "expected 76 bytes" in message
    assert "damaged: Error -3 while decompressing data: incorrect data check" in message
    packed = bytearray(gzip.compress(content))
    packed[10:30] = bytes(20)
    path.write_bytes(packed)
    assert "the gzip data are damaged" in _message(path)


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    assert "cannot read" in _message(tmp_path / "absent")
