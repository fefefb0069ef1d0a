"""MNIST: 60,000 + 10,000 grey images of 28x28, 10 digits, in four IDX files.

Source: LeCun, Bottou, Bengio & Haffner, "Gradient-Based Learning Applied to
Document Recognition" (1998).
"""

from __future__ import annotations

import gzip
import shutil
import zlib
from pathlib import Path

from torch import Tensor

from convoy.datasets.base import DataSet, check_labels, number_names, shape_text
from convoy.datasets.download import MNIST_MD5, OFFICIAL, Sources, check_md5, fetch
from convoy.datasets.idx import read_idx
from convoy.datasets.memory import in_memory
from convoy.errors import DataError

_NUM_CLASSES = 10
_SIZE = (28, 28)


def open_mnist(data_dir: Path, sources: Sources = OFFICIAL) -> DataSet:
    """MNIST from `data_dir` or its folder mnist/, plain or .gz; downloaded if it is not there.

    Any set of files with MNIST's names and sizes does (Fashion-MNIST, or the
    first thousand of each). Raises DataError.
    """
    paths = {name: _find(data_dir, name) for name in MNIST_MD5}
    missing = [name for name, path in paths.items() if path is None]
    for name in missing:
        paths[name] = _download(name, data_dir / "mnist", sources, missing)
    files = [path for path in paths.values() if path is not None]
    return in_memory(
        "mnist",
        _read_split(files[0], files[1]),
        _read_split(files[2], files[3]),
        class_names=number_names(_NUM_CLASSES),
    )


def _find(data_dir: Path, name: str) -> Path | None:
    # MNIST/raw is where torchvision puts them.
    for folder in (data_dir, data_dir / "mnist", data_dir / "MNIST" / "raw"):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def _read_split(images_path: Path, labels_path: Path) -> tuple[Tensor, Tensor]:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if tuple(images.shape[1:]) != _SIZE:
        raise DataError(
            f"{images_path}: expected images of {shape_text(_SIZE)}, found "
            f"{shape_text(tuple(images.shape[1:]))}; it is not of MNIST"
        )
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} has {len(images)} images and {labels_path} has {len(labels)} labels; "
            "expected as many: they are not of one set"
        )
    if len(images) == 0:
        raise DataError(f"{images_path}: expected images, found none")
    check_labels(labels, _NUM_CLASSES, str(labels_path))
    return images.unsqueeze(1), labels.long()


def _download(name: str, folder: Path, sources: Sources, missing: list[str]) -> Path:
    """Fetch one file and keep it decompressed, which is quicker to open every time after."""

    def install(file: Path, scratch: Path) -> None:
        plain = scratch / name
        _decompress(file, plain)
        check_md5(plain, sources.mnist_md5[name], f"the decompressed {name}")
        plain.replace(folder / name)

    fetch(
        [f"{mirror}{name}.gz" for mirror in sources.mnist],
        folder,
        install,
        sources=sources,
        missing=f"MNIST is not in {folder.parent} or {folder}: no {', '.join(missing)} "
        "(plain or .gz)",
        by_hand=f"Put the files into {folder} by hand, or say where they are with --data-dir or "
        "CONVOY_DATA.",
    )
    return folder / name


def _decompress(file: Path, plain: Path) -> None:
    with file.open("rb") as start:
        compressed = start.read(2) == b"\x1f\x8b"
    # Some servers undo the compression on the way; the sum that is checked is the same.
    if not compressed:
        shutil.copyfile(file, plain)
        return
    try:
        with gzip.open(file, "rb") as source, plain.open("wb") as target:
            shutil.copyfileobj(source, target)
    except (EOFError, zlib.error) as error:
        size = file.stat().st_size
        raise DataError(f"what came ({size} bytes) is not whole gzip data: {error}") from error
