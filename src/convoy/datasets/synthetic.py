"""Images made of nothing: a blocky pattern for each class, under noise.

For measuring, where any pixels will do, and for tests that want a loss to fall.
All arithmetic is in integers on NumPy's frozen RandomState streams (NEP 19), so
every machine makes the same bytes, whatever the seed of the run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import Tensor

from convoy.datasets.base import DataSet, Shape, number_names
from convoy.datasets.memory import in_memory
from convoy.errors import UsageError

FORM = "synthetic:CxHxW:classes[:count]"
EXAMPLE = "synthetic:3x32x32:10"

_SPEC = re.compile(r"synthetic:(\d+)x(\d+)x(\d+):(\d+)(?::(\d+))?", re.ASCII)
_TRAIN_COUNT = 2048
_TRAIN_PER_TEST = 4
_BLOCKS = 4
# 128 - 48 - 80 = 0 and 128 + 48 + 79 = 255: no sum leaves a byte, so nothing is clipped.
_MIDDLE, _PATTERN, _NOISE = 128, 48, 80
_IMAGES_PER_CHUNK = 64
_PATTERN_SEED, _TRAIN_SEED, _TEST_SEED = 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """What a specification asks for."""

    shape: Shape
    """C, H, W."""
    num_classes: int
    """Classes take turns: sample i is of class i mod num_classes."""
    count: int = _TRAIN_COUNT
    """Training samples; there is a quarter as many test samples, at least one."""

    @property
    def test_count(self) -> int:
        """Test samples."""
        return max(1, self.count // _TRAIN_PER_TEST)


def parse_synthetic(spec: str) -> Synthetic:
    """Read `synthetic:CxHxW:classes[:count]`. Raises UsageError that shows the form."""
    match = _SPEC.fullmatch(spec)
    numbers = [int(text) for text in match.groups() if text is not None] if match else [0]
    if min(numbers) < 1:
        raise UsageError(
            f"data set {spec!r}: expected {FORM}, all of them whole numbers of at least 1, "
            f"such as {EXAMPLE} or {EXAMPLE}:512"
        )
    channels, height, width, num_classes, *count = numbers
    return Synthetic(
        shape=(channels, height, width),
        num_classes=num_classes,
        count=count[0] if count else _TRAIN_COUNT,
    )


def open_synthetic(spec: str) -> DataSet:
    """Make what `spec` asks for. Raises UsageError if it is malformed or exceeds the memory."""
    wanted = parse_synthetic(spec)
    _check_memory(spec, wanted)
    patterns = _patterns(wanted)
    return in_memory(
        spec,
        _samples(wanted, patterns, wanted.count, _TRAIN_SEED),
        _samples(wanted, patterns, wanted.test_count, _TEST_SEED),
        class_names=number_names(wanted.num_classes),
    )


def _check_memory(spec: str, wanted: Synthetic) -> None:
    images = wanted.count + wanted.test_count + wanted.num_classes
    channels, height, width = wanted.shape
    need, free = images * channels * height * width, psutil.virtual_memory().available
    if need > free:
        raise UsageError(
            f"data set {spec!r} would take {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory "
            f"are free; ask for fewer samples or smaller images ({FORM})"
        )


def _patterns(wanted: Synthetic) -> np.ndarray:
    """One image per class, int16 [classes, C, H, W], of 4x4 even blocks (fewer if tiny)."""
    channels, height, width = wanted.shape
    random = np.random.RandomState(_PATTERN_SEED)
    blocks = random.randint(
        -_PATTERN, _PATTERN + 1, size=(wanted.num_classes, channels, _BLOCKS, _BLOCKS)
    ).astype(np.int16)
    rows = np.arange(height) * _BLOCKS // height
    across = np.arange(width) * _BLOCKS // width
    return blocks[:, :, rows[:, None], across[None, :]]


def _samples(
    wanted: Synthetic, patterns: np.ndarray, count: int, seed: int
) -> tuple[Tensor, Tensor]:
    targets = torch.arange(count) % wanted.num_classes
    pixels = torch.empty(count, *wanted.shape, dtype=torch.uint8)
    random = np.random.RandomState(seed)
    for start in range(0, count, _IMAGES_PER_CHUNK):
        part = pixels[start : start + _IMAGES_PER_CHUNK].numpy()
        noise = np.frombuffer(random.bytes(part.size), dtype=np.uint8).astype(np.int16)
        noise = noise * np.int16(_NOISE) // np.int16(128) + np.int16(_MIDDLE - _NOISE)
        classes = targets[start : start + _IMAGES_PER_CHUNK].numpy()
        part[:] = noise.reshape(part.shape) + patterns[classes]
    return pixels, targets
