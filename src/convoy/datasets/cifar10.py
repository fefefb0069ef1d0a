"""CIFAR-10: 50,000 + 10,000 colour images of 32x32, 10 classes, five files and one.

    binary version, cifar-10-batches-bin/: records of 3,073 bytes,
        1 label, 1,024 red, 1,024 green, 1,024 blue; rows from the top
    python version, cifar-10-batches-py/: pickles of the same (see pickles.py)

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009).
"""

from __future__ import annotations

import logging
import shutil
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convoy.datasets.base import DataSet, Shape, check_labels
from convoy.datasets.download import OFFICIAL, Sources, check_md5, fetch
from convoy.datasets.memory import in_memory
from convoy.datasets.pickles import read_python_batch, read_python_names
from convoy.errors import DataError

logger = logging.getLogger(__name__)

CLASS_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
SHAPE: Shape = (3, 32, 32)
RECORD_BYTES = 1 + 3 * 32 * 32
RECORDS_PER_FILE = 10_000


@dataclass(frozen=True, kw_only=True)
class _Version:
    """One of the two layouts."""

    folder: str
    """As its archive unpacks."""
    train: tuple[str, ...]
    """The training files, in order."""
    test: str
    """The test file."""
    names: str
    """The class names; may be missing."""


_BINARY = _Version(
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test="test_batch.bin",
    names="batches.meta.txt",
)
_PYTHON = _Version(
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    names="batches.meta",
)


def open_cifar10(data_dir: Path, sources: Sources = OFFICIAL) -> DataSet:
    """CIFAR-10 from `data_dir` or its folder cifar10/, either version; downloaded if not there.

    Files of fewer than 10,000 records are taken, with a warning in the log.
    Raises DataError.
    """
    version, folder = _find(data_dir) or _download(data_dir, sources)
    train = [_read(version, folder / name) for name in version.train]
    pixels = torch.cat([batch for batch, _ in train])
    targets = torch.cat([labels for _, labels in train])
    return in_memory(
        "cifar10",
        (pixels, targets),
        _read(version, folder / version.test),
        class_names=_class_names(version, folder / version.names),
    )


def _candidates(data_dir: Path) -> list[tuple[_Version, Path]]:
    # The batches' own folder is taken too: it is what --data-dir is easily pointed at.
    return [
        (version, folder)
        for root in (data_dir, data_dir / "cifar10")
        for version in (_BINARY, _PYTHON)
        for folder in (root / version.folder, root)
    ]


def _missing(version: _Version, folder: Path) -> list[str]:
    return [name for name in (*version.train, version.test) if not (folder / name).is_file()]


def _find(data_dir: Path) -> tuple[_Version, Path] | None:
    for version, folder in _candidates(data_dir):
        if not _missing(version, folder):
            return version, folder
    return None


def _read(version: _Version, path: Path) -> tuple[Tensor, Tensor]:
    """One file: pixels, uint8 [n, 3, 32, 32], and labels, int64 [n]."""
    pixels, labels = read_binary_batch(path) if version is _BINARY else read_python_batch(path)
    check_labels(labels, len(CLASS_NAMES), str(path))
    if len(labels) != RECORDS_PER_FILE:
        logger.warning(
            "%s has %d records; the official file has %d", path, len(labels), RECORDS_PER_FILE
        )
    return pixels.view(-1, *SHAPE), labels.long()


def read_binary_batch(path: Path) -> tuple[Tensor, Tensor]:
    """One file of the binary version: uint8 [n, 3072] and uint8 [n]. Raises DataError."""
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if len(raw) == 0 or len(raw) % RECORD_BYTES:
        raise DataError(
            f"{path}: expected {RECORDS_PER_FILE * RECORD_BYTES} bytes ({RECORDS_PER_FILE} records "
            f"of {RECORD_BYTES}; fewer, if whole), found {len(raw)}, which is "
            f"{len(raw) // RECORD_BYTES} records and {len(raw) % RECORD_BYTES} bytes; get it again"
        )
    records = torch.from_numpy(raw).view(-1, RECORD_BYTES)
    return records[:, 1:].contiguous(), records[:, 0].contiguous()


def _class_names(version: _Version, path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return CLASS_NAMES
    if version is _PYTHON:
        found = read_python_names(path)
    else:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {path}: {error}") from error
        found = tuple(line.strip() for line in lines if line.strip())
    if len(found) != len(CLASS_NAMES):
        raise DataError(f"{path}: expected {len(CLASS_NAMES)} class names, found {len(found)}")
    return found


def _download(data_dir: Path, sources: Sources) -> tuple[_Version, Path]:
    folder = data_dir / "cifar10" / _BINARY.folder

    def install(file: Path, scratch: Path) -> None:
        check_md5(file, sources.cifar10_md5, "the archive")
        _extract(file, scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for path in scratch.iterdir():
            path.replace(folder / path.name)

    # Speak of the place that has most of it: that is where the person put files.
    version, nearest = min(_candidates(data_dir), key=lambda place: len(_missing(*place)))
    fetch(
        sources.cifar10,
        data_dir / "cifar10",
        install,
        sources=sources,
        missing=f"CIFAR-10 is not in {data_dir} or {data_dir / 'cifar10'}: {nearest} has no "
        f"{', '.join(_missing(version, nearest))}",
        by_hand=f"Unpack cifar-10-binary.tar.gz (or cifar-10-python.tar.gz) in "
        f"{data_dir / 'cifar10'} by hand, or say where it is with --data-dir or CONVOY_DATA.",
    )
    return _BINARY, folder


def _extract(archive: Path, target: Path) -> None:
    """Write the binary version's files, and nothing else, from `archive` to `target`."""
    wanted = {*_BINARY.train, _BINARY.test, _BINARY.names}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                # Only the last part of the name is used: no member can leave the folder.
                name = Path(member.name).name
                content = tar.extractfile(member) if name in wanted else None
                if content is not None:
                    with (target / name).open("wb") as file:
                        shutil.copyfileobj(content, file)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"the archive is damaged: {error}") from error
    if absent := _missing(_BINARY, target):
        raise DataError(f"the archive has no {', '.join(absent)}")
