from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from convoy.datasets import open_dataset
from convoy.errors import DataError, UsageError


class Items(Dataset[Any]):
    """A list as a data set; attributes are given by name."""

    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


BYTES = np.random.RandomState(0).randint(0, 256, (6, 5, 4, 3)).astype(np.uint8)  # n H W C
LABELS = [0, 2, 1, 0, 1, 2]


def _items(kind: str) -> list[Any]:
    convert: dict[str, Any] = {
        "pil": Image.fromarray,
        "numpy": lambda image: image,
        "numpy float": lambda image: (image / 255).astype(np.float64),
        "tensor": lambda image: torch.from_numpy(image).permute(2, 0, 1).float() / 255,
        "tensor bytes": lambda image: torch.from_numpy(image).permute(2, 0, 1),
    }
    return [(convert[kind](image), label) for image, label in zip(BYTES, LABELS, strict=True)]


@pytest.mark.parametrize("kind", ["pil", "numpy", "numpy float", "tensor", "tensor bytes"])
def test_every_kind_of_image_gives_the_same_batch(kind: str) -> None:
    items = _items(kind)
    data = open_dataset((Items(items), Items(items[:2])))
    assert data.name == "Items"
    assert data.train.image_shape == (3, 5, 4)
    assert data.train.class_names == ("0", "1", "2")
    expected = torch.from_numpy(BYTES).permute(0, 3, 1, 2).double() / 255
    assert data.mean == pytest.approx(expected.mean(dim=(0, 2, 3)).tolist(), abs=1e-6)
    flat = expected.transpose(0, 1).flatten(1)
    assert data.std == pytest.approx(flat.std(dim=1, correction=0).tolist(), abs=1e-6)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (data.mean, data.std))
    images, labels = data.train.batch(torch.tensor([5, 0, 5]))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    torch.testing.assert_close(images, ((expected[[5, 0, 5]] - mean) / std).float())
    assert labels.tolist() == [2, 0, 2]


def test_reading_changes_no_item() -> None:
    items = _items("tensor")
    before = [image.clone() for image, _ in items]
    open_dataset((Items(items), Items(items))).train.batch(torch.arange(6))
    assert all(torch.equal(image, old) for (image, _), old in zip(items, before, strict=True))


@pytest.mark.parametrize("label", [1, np.int64(1), torch.tensor(1), True])
def test_labels_of_every_kind(label: object) -> None:
    data = open_dataset((Items([(np.zeros((2, 2)), label)]),) * 2)
    assert data.train.labels().tolist() == [1]
    assert data.train.image_shape == (1, 2, 2)


def test_a_mapping_a_function_and_a_data_set() -> None:
    train, test = Items(_items("pil")), Items(_items("pil")[:3])

    def pets() -> object:
        return {"train": train, "test": test}

    for spec in ({"train": train, "test": test}, pets, lambda: (train, test), [train, test]):
        data = open_dataset(spec)  # type: ignore[arg-type]
        assert (len(data.train), len(data.test)) == (6, 3)
    assert open_dataset(pets).name == "pets"
    assert open_dataset(data) is data
    assert open_dataset(lambda: data) is data


def test_torch_data_sets() -> None:
    whole = TensorDataset(torch.rand(10, 1, 4, 4), torch.arange(10) % 4)
    data = open_dataset((Subset(whole, range(8)), Subset(whole, [8, 9])))
    assert data.train.num_classes == 4
    assert data.test.labels().tolist() == [0, 1]
    assert len(pickle.loads(pickle.dumps(data)).train) == 8


class Counting(Items):
    """Counts how often an item is read."""

    read = 0

    def __getitem__(self, index: int) -> Any:
        Counting.read += 1
        return self.items[index]


@pytest.mark.parametrize(
    ("attributes", "names"),
    [
        ({"classes": ["cat", "dog", "eel"]}, ("cat", "dog", "eel")),
        ({"targets": [0, 1, 3]}, ("0", "1", "2", "3")),
        ({"targets": torch.tensor([0, 1, 3])}, ("0", "1", "2", "3")),
        ({"labels": np.array([0, 2])}, ("0", "1", "2")),
        ({"targets": [[0, 1], [1, 0]]}, ("0", "1", "2")),  # not labels: counted by reading
        ({"targets": [0, 9], "target_transform": abs}, ("0", "1", "2")),
        ({}, ("0", "1", "2")),
    ],
)
def test_where_the_classes_come_from(attributes: dict[str, Any], names: tuple[str, ...]) -> None:
    train = Items(_items("tensor"), **attributes)
    assert open_dataset((train, train)).train.class_names == names
    inside = Subset(train, range(6))
    assert open_dataset((inside, inside)).train.class_names == names


def test_only_a_sample_of_a_large_set_is_read() -> None:
    train = Counting([(np.ones((1, 1)), 0)] * 5000, targets=[0] * 5000)
    Counting.read = 0
    open_dataset((train, Items(train.items[:1])))
    assert Counting.read <= 1001


def test_pictures_are_resized_and_arrays_are_not() -> None:
    data = open_dataset((Items(_items("pil")),) * 2, image_shape=(1, 8, 8))
    assert data.train.batch(torch.arange(6))[0].shape == (6, 1, 8, 8)
    with pytest.raises(DataError, match="train, item 0: the image has shape 3x5x4, expected 1x8x8"):
        open_dataset((Items(_items("numpy")),) * 2, image_shape=(1, 8, 8))
    with pytest.raises(UsageError, match="4x8x8"):
        open_dataset((Items(_items("pil")),) * 2, image_shape=(4, 8, 8))


GOOD = (np.zeros((5, 4, 3), dtype=np.uint8), 0)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((np.zeros((4, 4, 3), dtype=np.uint8), 0), "shape 3x4x4, expected 3x5x4"),
        ((np.zeros((5, 4, 3), dtype=np.int32), 0), "numbers are int32; expected uint8"),
        ((np.zeros((5, 4, 3), dtype=str), 0), "numbers are <U1; expected uint8"),
        ((torch.zeros(3, 5, 4, dtype=torch.bool), 0), "numbers are torch.bool"),
        ((torch.zeros(3, 5, 4, 1), 0), "shape 3x5x4x1"),
        (("cat.png", 0), "of type str; expected a PIL picture"),
        ((GOOD[0], "cat"), "the label is 'cat'; expected a whole number"),
        ((GOOD[0], 0.5), "the label is 0.5"),
        ((GOOD[0], -1), r"the label is -1, outside 0\.\.2"),
        ((GOOD[0], 3), r"the label is 3, outside 0\.\.2"),
        (GOOD[0], "is a ndarray; expected a pair"),
        ((1, 2, 3), "is a tuple; expected a pair"),
        ((Image.new("F", (4, 5)), 0), "cannot convert the picture: ValueError"),
    ],
)
def test_a_bad_item_is_named(item: object, message: str) -> None:
    train = Items([GOOD], classes=["a", "b", "c"])
    data = open_dataset((train, Items([GOOD, item])))
    with pytest.raises(DataError, match=message) as caught:
        data.test.batch(torch.tensor([0, 1]))
    assert "data set 'Items', test, item 1" in str(caught.value)


def test_an_item_that_raises_is_named() -> None:
    class Raising(Items):
        def __getitem__(self, index: int) -> Any:
            raise RuntimeError("no luck")

    good = Items([GOOD])
    with pytest.raises(DataError, match="train, item 0 cannot be read: RuntimeError: no luck"):
        open_dataset((Raising([GOOD]), good))


class Stream(IterableDataset[Any]):
    """Not map-style."""

    def __iter__(self) -> Any:
        return iter(())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ((Stream(), Stream()), "train is a Stream; expected a map-style"),
        ((Items([GOOD]), 3), "test is a int; expected a map-style"),
        (Items([GOOD]), r"found a Items; expected \(train, test\)"),
        ((Items([GOOD]),), "found a tuple of 1"),
        ({"train": Items([GOOD]), "val": 1}, "found a dict with the keys train, val"),
        (lambda: None, "found a NoneType"),
        (None, "found a NoneType"),
    ],
)
def test_what_is_no_pair_of_data_sets(spec: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_dataset(spec)


def test_an_empty_set() -> None:
    with pytest.raises(DataError, match="test is empty"):
        open_dataset((Items([GOOD]), Items([])))
