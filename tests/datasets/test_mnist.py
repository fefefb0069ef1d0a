from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convoy.datasets import Sources, open_dataset
from convoy.datasets.download import MNIST_MD5
from convoy.datasets.idx import read_idx
from convoy.errors import DataError

Arrays = dict[str, np.ndarray]
Encode = Callable[[np.ndarray], bytes]
Write = Callable[..., None]


def _restored(data: object, split: str) -> tuple[np.ndarray, np.ndarray]:
    part = getattr(data, split)
    images, labels = part.batch(torch.arange(len(part)))
    pixels = (images * data.std[0] + data.mean[0]) * 255
    return pixels.round().to(torch.uint8)[:, 0].numpy(), labels.numpy()


@pytest.mark.parametrize("place", [".", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("compress", [False, True])
def test_every_place_and_both_forms(
    tmp_path: Path, write_mnist: Write, mnist_arrays: Arrays, place: str, compress: bool
) -> None:
    write_mnist(tmp_path / place, compress=compress)
    data = open_dataset("mnist", data_dir=tmp_path)
    assert (data.name, data.train.image_shape, data.train.num_classes) == ("mnist", (1, 28, 28), 10)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        pixels, labels = _restored(data, split)
        assert np.array_equal(pixels, mnist_arrays[f"{prefix}-images-idx3-ubyte"])
        assert np.array_equal(labels, mnist_arrays[f"{prefix}-labels-idx1-ubyte"])
    expected = mnist_arrays["train-images-idx3-ubyte"] / 255
    assert data.mean == pytest.approx([expected.mean()], abs=1e-12)
    assert data.std == pytest.approx([expected.std()], abs=1e-12)


def test_a_label_out_of_range(tmp_path: Path, write_mnist: Write) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    content[8 + 13] = 10
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_dataset("mnist", data_dir=tmp_path)
    assert f"{path}: the label at index 13 is 10, outside 0..9" in str(caught.value)


def test_images_and_labels_that_do_not_belong_together(
    tmp_path: Path, write_mnist: Write, idx_bytes: Encode
) -> None:
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(29)))
    with pytest.raises(DataError, match=r"has 30 images and .* has 29 labels"):
        open_dataset("mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("shape", "message"), [((30, 20, 28), "28x28, found 20x28"), ((0, 28, 28), "0 images")]
)
def test_images_of_another_kind(
    tmp_path: Path,
    write_mnist: Write,
    idx_bytes: Encode,
    shape: tuple[int, ...],
    message: str,
) -> None:
    write_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros(shape)))
    with pytest.raises(DataError, match=message):
        open_dataset("mnist", data_dir=tmp_path)


def test_no_images_at_all(tmp_path: Path, write_mnist: Write, idx_bytes: Encode) -> None:
    write_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.empty((0, 28, 28))))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.empty(0)))
    with pytest.raises(DataError, match="found none"):
        open_dataset("mnist", data_dir=tmp_path)


@pytest.fixture
def mirror(web: Any, mnist_arrays: Arrays, idx_bytes: Encode) -> Sources:
    """A mirror of the small MNIST."""
    contents = {name: idx_bytes(array) for name, array in mnist_arrays.items()}
    web.files = {f"/{n}.gz": gzip.compress(c) for n, c in contents.items()}
    return Sources(
        mnist=(f"{web.url}/",),
        mnist_md5={name: hashlib.md5(content).hexdigest() for name, content in contents.items()},
    )


def test_missing_files_are_downloaded_once(
    tmp_path: Path, web: Any, mirror: Sources, mnist_arrays: Arrays
) -> None:
    data = open_dataset("mnist", data_dir=tmp_path / "new", sources=mirror)
    assert np.array_equal(_restored(data, "train")[0], mnist_arrays["train-images-idx3-ubyte"])
    assert sorted(path.name for path in (tmp_path / "new" / "mnist").iterdir()) == sorted(MNIST_MD5)
    assert len(web.asked) == 4
    open_dataset("mnist", data_dir=tmp_path / "new", sources=mirror)
    assert len(web.asked) == 4


def test_only_what_is_missing_is_downloaded(
    tmp_path: Path, web: Any, mirror: Sources, write_mnist: Write
) -> None:
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    open_dataset("mnist", data_dir=tmp_path, sources=mirror)
    assert web.asked == ["/t10k-labels-idx1-ubyte.gz"]


def test_a_server_that_undoes_the_compression(tmp_path: Path, web: Any, mirror: Sources) -> None:
    files = web.files
    web.files = {n: gzip.decompress(c) for n, c in files.items()}
    open_dataset("mnist", data_dir=tmp_path, sources=mirror)


@pytest.mark.parametrize("damage", ["wrong", "cut"])
def test_a_bad_download_is_not_kept(tmp_path: Path, web: Any, mirror: Sources, damage: str) -> None:
    path = "/train-images-idx3-ubyte.gz"
    good = web.files[path]
    bad = gzip.compress(b"another file") if damage == "wrong" else good[:-20]
    web.files[path] = bad
    with pytest.raises(DataError) as caught:
        open_dataset("mnist", data_dir=tmp_path, sources=mirror)
    message = str(caught.value)
    assert f"{web.url}{path}" in message
    expected = mirror.mnist_md5["train-images-idx3-ubyte"]
    assert (f"expected {expected}" if damage == "wrong" else "not whole gzip data") in message
    assert list((tmp_path / "mnist").iterdir()) == []


def test_a_second_mirror_steps_in(tmp_path: Path, mirror: Sources, refusing: str) -> None:
    sources = Sources(mnist=(f"{refusing}/", *mirror.mnist), mnist_md5=mirror.mnist_md5)
    open_dataset("mnist", data_dir=tmp_path, sources=sources)


def test_without_a_network_it_says_what_where_and_what_to_do(
    tmp_path: Path, refusing: str, write_mnist: Write
) -> None:
    write_mnist(tmp_path)
    for name in ("train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError) as caught:
        open_dataset("mnist", data_dir=tmp_path, sources=Sources(mnist=(f"{refusing}/",)))
    message = str(caught.value)
    assert "no train-labels-idx1-ubyte, t10k-images-idx3-ubyte (plain or .gz)" in message
    assert f"{refusing}/train-labels-idx1-ubyte.gz" in message
    assert "refused" in message
    assert f"Put the files into {tmp_path / 'mnist'} by hand" in message
    assert "CONVOY_DATA" in message


def test_the_published_sums_statistics_and_labels(real_data: Path) -> None:
    for name, expected in MNIST_MD5.items():
        path = real_data / "mnist" / f"{name}.gz"
        content = gzip.decompress(path.read_bytes())
        assert hashlib.md5(content).hexdigest() == expected
        num_dims = 3 if "images" in name else 1
        found = read_idx(path, num_dims).numpy().tobytes()
        assert found == content[4 + 4 * num_dims :]
    data = open_dataset("mnist", data_dir=real_data)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert data.mean[0] == pytest.approx(0.1307, abs=5e-5)
    assert data.std[0] == pytest.approx(0.3081, abs=5e-5)
    assert data.train.batch(torch.arange(10))[1].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.test.batch(torch.arange(5))[1].tolist() == [7, 2, 1, 0, 4]
