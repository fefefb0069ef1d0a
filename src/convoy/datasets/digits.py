"""The handwritten digits that come inside scikit-learn: 1,797 grey images of 8x8, 10 classes.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits",
UCI Machine Learning Repository, 1998 (its test set).
"""

from __future__ import annotations

import torch

from convoy.datasets.base import DataSet, number_names
from convoy.datasets.memory import in_memory
from convoy.datasets.split import stratified_split

FULL_SCALE = 16
"""Pixels count the ink in blocks of 4x4: 0..16."""

_SPLIT_SEED = 0


def open_digits() -> DataSet:
    """1,437 digits to train on and 360 to test on; the split depends on nothing."""
    # Here and not above because importing scikit-learn takes about a second, which
    # no other data set should pay.
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = torch.from_numpy(found.images).to(torch.uint8).unsqueeze(1)
    targets = torch.from_numpy(found.target).to(torch.int64)
    train, test = stratified_split(
        [str(index) for index in range(len(targets))], targets.tolist(), seed=_SPLIT_SEED
    )
    return in_memory(
        "digits",
        (pixels[train], targets[train]),
        (pixels[test], targets[test]),
        class_names=number_names(10),
        full_scale=FULL_SCALE,
    )
