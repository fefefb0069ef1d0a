from __future__ import annotations

import hashlib
import io
import logging
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convoy.datasets import DataSet, Sources, open_dataset
from convoy.datasets.cifar10 import CLASS_NAMES
from convoy.errors import DataError

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]
NOWHERE = Sources(cifar10=())
META = "\n".join(CLASS_NAMES) + "\n\n"


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def _python_files(arrays: Arrays) -> dict[str, bytes]:
    files = {
        name: pickle.dumps({b"data": pixels, b"labels": labels.tolist()}, protocol=2)
        for name, (pixels, labels) in arrays.items()
    }
    names = [name.encode() for name in CLASS_NAMES]
    files["batches.meta"] = pickle.dumps({b"label_names": names}, protocol=2)
    return files


def _archive(files: dict[str, bytes], prefix: str = "cifar-10-batches-bin/") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def _check(data: DataSet, arrays: Arrays) -> None:
    """Every pixel and label is where the layout says."""
    train = [arrays[f"data_batch_{number}"] for number in range(1, 6)]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
    for split, parts in ((data.train, train), (data.test, [arrays["test_batch"]])):
        images, labels = split.batch(torch.arange(len(split)))
        restored = ((images * std + mean) * 255).round().to(torch.uint8)
        expected = np.concatenate([pixels for pixels, _ in parts])
        assert np.array_equal(restored.numpy(), expected.reshape(-1, 3, 32, 32))
        assert labels.tolist() == np.concatenate([labels for _, labels in parts]).tolist()
    assert data.train.class_names == CLASS_NAMES
    assert data.train.image_shape == (3, 32, 32)


@pytest.mark.parametrize(
    "place", ["cifar-10-batches-bin", "cifar10/cifar-10-batches-bin", "cifar10", "."]
)
def test_the_binary_version(
    tmp_path: Path, cifar_binary: dict[str, bytes], cifar_arrays: Arrays, place: str
) -> None:
    _write(tmp_path / place, {**cifar_binary, "batches.meta.txt": META.encode()})
    _check(open_dataset("cifar10", data_dir=tmp_path, sources=NOWHERE), cifar_arrays)


@pytest.mark.parametrize("place", ["cifar-10-batches-py", "cifar10/cifar-10-batches-py", "."])
def test_the_python_version(tmp_path: Path, cifar_arrays: Arrays, place: str) -> None:
    _write(tmp_path / place, _python_files(cifar_arrays))
    _check(open_dataset("cifar10", data_dir=tmp_path, sources=NOWHERE), cifar_arrays)


def test_class_names_may_be_missing_or_others_but_must_be_ten(
    tmp_path: Path, cifar_binary: dict[str, bytes]
) -> None:
    folder = _write(tmp_path, cifar_binary)
    assert open_dataset("cifar10", data_dir=tmp_path).train.class_names == CLASS_NAMES
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    assert open_dataset("cifar10", data_dir=tmp_path).test.class_names == tuple("abcdefghij")
    (folder / "batches.meta.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"batches.meta.txt: expected 10 class names, found 2"):
        open_dataset("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize(("length", "found"), [(3073 * 5 - 1, "4 records and 3072"), (0, "0 rec")])
def test_a_truncated_file(
    tmp_path: Path, cifar_binary: dict[str, bytes], length: int, found: str
) -> None:
    name = "data_batch_2.bin"
    cifar_binary[name] = cifar_binary[name][:length]
    _write(tmp_path, cifar_binary)
    with pytest.raises(DataError) as caught:
        open_dataset("cifar10", data_dir=tmp_path)
    message = str(caught.value)
    assert f"{tmp_path / name}: expected 30730000 bytes (10000 records of 3073;" in message
    assert f"found {length}, which is {found}" in message


def test_a_short_file_of_whole_records_is_told(
    tmp_path: Path, cifar_binary: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    _write(tmp_path, cifar_binary)
    with caplog.at_level(logging.WARNING):
        open_dataset("cifar10", data_dir=tmp_path)
    assert "test_batch.bin has 9 records; the official file has 10000" in caplog.text


@pytest.mark.parametrize("version", ["binary", "python"])
def test_a_label_out_of_range(tmp_path: Path, cifar_arrays: Arrays, version: str) -> None:
    cifar_arrays["data_batch_3"][1][4] = 10
    if version == "binary":
        pixels, labels = cifar_arrays["data_batch_3"]
        files = {f"data_batch_{n}.bin": bytes(3073) for n in (1, 2, 4, 5)}
        records = np.concatenate((labels[:, None].astype(np.uint8), pixels), axis=1)
        files |= {"test_batch.bin": bytes(3073), "data_batch_3.bin": records.tobytes()}
    else:
        files = _python_files(cifar_arrays)
    _write(tmp_path, files)
    with pytest.raises(DataError, match=r"data_batch_3.*: the label at index 4 is 10, outside 0"):
        open_dataset("cifar10", data_dir=tmp_path)


def _sources(web: Any, archive: bytes) -> Sources:
    web.files["/cifar-10-binary.tar.gz"] = archive
    return Sources(
        cifar10=(f"{web.url}/cifar-10-binary.tar.gz",),
        cifar10_md5=hashlib.md5(archive).hexdigest(),
    )


def test_missing_files_are_downloaded_once(
    tmp_path: Path, web: Any, cifar_binary: dict[str, bytes], cifar_arrays: Arrays
) -> None:
    files = {"readme.html": b"<html>", "batches.meta.txt": META.encode(), **cifar_binary}
    sources = _sources(web, _archive(files))
    # An incomplete folder of the person's own is no obstacle.
    _write(tmp_path / "cifar10" / "cifar-10-batches-bin", {"data_batch_1.bin": b"half"})
    for _ in range(2):
        _check(open_dataset("cifar10", data_dir=tmp_path, sources=sources), cifar_arrays)
    assert len(web.asked) == 1
    assert [path.name for path in (tmp_path / "cifar10").iterdir()] == ["cifar-10-batches-bin"]


def test_an_archive_writes_nowhere_else(
    tmp_path: Path, web: Any, cifar_binary: dict[str, bytes]
) -> None:
    files = {"../../../evil": b"evil", **cifar_binary}
    sources = _sources(web, _archive(files, prefix="../../../"))
    before = set(tmp_path.parent.rglob("*"))
    open_dataset("cifar10", data_dir=tmp_path / "data", sources=sources)
    made = {path.name for path in set(tmp_path.parent.rglob("*")) - before if path.is_file()}
    assert made == set(cifar_binary)


@pytest.mark.parametrize("fault", ["sum", "cut", "lacking"])
def test_a_bad_archive_is_not_kept(
    tmp_path: Path, web: Any, cifar_binary: dict[str, bytes], fault: str
) -> None:
    if fault == "lacking":
        del cifar_binary["data_batch_4.bin"]
    archive = _archive(cifar_binary)
    sources = _sources(web, archive[:-3000] if fault == "cut" else archive)
    if fault == "sum":
        sources = Sources(cifar10=sources.cifar10)
    with pytest.raises(DataError) as caught:
        open_dataset("cifar10", data_dir=tmp_path, sources=sources)
    expected = {
        "sum": "expected c32a1d4ab5d03f1284b67883e8d87530",
        "cut": "the archive is damaged",
        "lacking": "the archive has no data_batch_4.bin",
    }
    assert expected[fault] in str(caught.value)
    assert sources.cifar10[0] in str(caught.value)
    assert list((tmp_path / "cifar10").iterdir()) == []


def test_without_a_network_it_says_what_where_and_what_to_do(
    tmp_path: Path, refusing: str, cifar_arrays: Arrays
) -> None:
    files = _python_files(cifar_arrays)
    del files["data_batch_5"]
    folder = _write(tmp_path / "cifar-10-batches-py", files)
    url = f"{refusing}/cifar-10-binary.tar.gz"
    with pytest.raises(DataError) as caught:
        open_dataset("cifar10", data_dir=tmp_path, sources=Sources(cifar10=(url,)))
    message = str(caught.value)
    assert f"{folder} has no data_batch_5\n" in message
    assert url in message
    assert "refused" in message
    assert f"(or cifar-10-python.tar.gz) in {tmp_path / 'cifar10'} by hand" in message
