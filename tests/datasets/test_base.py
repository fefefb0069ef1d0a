from __future__ import annotations

import pickle

import cloudpickle
import pytest
import torch

from convoy.datasets import DataSet, ImageData, open_dataset
from convoy.datasets.base import check_labels
from convoy.errors import DataError, UsageError


def test_labels_of_a_split_are_those_of_its_batches() -> None:
    data = open_dataset("synthetic:1x2x2:3:2500")
    assert torch.equal(data.train.labels(), torch.arange(2500) % 3)


def test_image_data_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ImageData()  # type: ignore[abstract]


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_a_data_set_pickles(pickler: object) -> None:
    data = open_dataset("synthetic:1x4x4:3:16")
    copy = pickle.loads(pickler.dumps(data))  # type: ignore[attr-defined]
    assert (copy.name, copy.mean, copy.std) == (data.name, data.mean, data.std)
    for one, other in ((data.train, copy.train), (data.test, copy.test)):
        order = torch.arange(len(one))
        for before, after in zip(one.batch(order), other.batch(order), strict=True):
            assert torch.equal(before, after)


def test_splits_of_different_kinds_are_refused() -> None:
    small, large = open_dataset("synthetic:1x4x4:3:8"), open_dataset("synthetic:1x5x5:3:8")
    more = open_dataset("synthetic:1x4x4:4:8")
    for other, what in ((large, "image shape"), (more, "number of classes")):
        with pytest.raises(UsageError, match=what):
            DataSet(
                name="mixed", train=small.train, test=other.test, mean=small.mean, std=small.std
            )


def test_statistics_must_fit_the_channels() -> None:
    data = open_dataset("synthetic:3x4x4:3:8")
    with pytest.raises(UsageError, match="3 channel"):
        DataSet(name="x", train=data.train, test=data.test, mean=(0.5,), std=(0.5,))


def test_a_label_out_of_range_names_where_index_and_range() -> None:
    check_labels(torch.tensor([0, 9], dtype=torch.uint8), 10, "file")
    with pytest.raises(DataError, match=r"file: the label at index 2 is 10, outside 0\.\.9"):
        check_labels(torch.tensor([0, 9, 10, 11], dtype=torch.uint8), 10, "file")
    with pytest.raises(DataError, match="is -1"):
        check_labels(torch.tensor([-1]), 10, "file")
