"""Torch data sets (map-style, items of image and label) as Convoy's."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, final

from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from convoy.datasets.base import DataSet, Shape, number_names
from convoy.datasets.lazy import Reader, read_lazily
from convoy.datasets.pictures import check_picture_shape, item_shape, item_tensor
from convoy.errors import ConvoyError, DataError, UsageError


@final
class TorchItems(Reader):
    """The items of `data`. One thread at a time: few data sets say whether they allow more."""

    threads = False

    def __init__(self, data: Any, where: str, image_shape: Shape, num_classes: int) -> None:
        self.data, self.where = data, where
        self.image_shape, self.num_classes = image_shape, num_classes

    def __len__(self) -> int:
        return len(self.data)

    def read(self, index: int) -> tuple[Tensor, int]:
        """See Reader. Raises DataError that names the split and the index."""
        where = f"{self.where}, item {index}"
        image, label = _item(self.data, index, where)
        if not 0 <= label < self.num_classes:
            raise DataError(
                f"{where}: the label is {label}, outside 0..{self.num_classes - 1}; do train and "
                "test have the same classes?"
            )
        return item_tensor(image, self.image_shape, where), label


def open_items(name: str, train: Any, test: Any, *, image_shape: Shape | None = None) -> DataSet:
    """Two map-style data sets of (image, label); what an image may be: pictures.item_tensor.

    Images are of `image_shape`, by default that of the first one; only PIL
    pictures are converted to it. The classes are the training set's `classes`,
    or as many as its `targets` or `labels` need, or, where it has none of
    these, as a pass over all its items finds. Mean and std are estimated from a
    sample (channels.estimate). Raises UsageError and DataError.
    """
    places = {"train": train, "test": test}
    for split, data in places.items():
        _check(data, f"data set {name!r}: {split}")
    where = f"data set {name!r}, train"
    first = _item(train, 0, f"{where}, item 0")[0]
    if image_shape is not None and isinstance(first, Image.Image):
        check_picture_shape(image_shape)
    shape = image_shape or item_shape(first, f"{where}, item 0")
    class_names = _class_names(train, where)
    readers = [
        TorchItems(data, f"data set {name!r}, {split}", shape, len(class_names))
        for split, data in places.items()
    ]
    return read_lazily(name, readers[0], readers[1], class_names=class_names)


def _check(data: Any, where: str) -> None:
    if isinstance(data, IterableDataset) or not (
        hasattr(data, "__len__") and hasattr(data, "__getitem__")
    ):
        raise UsageError(
            f"{where} is a {type(data).__name__}; expected a map-style torch data set, with "
            "__len__ and __getitem__"
        )
    if len(data) == 0:
        raise DataError(f"{where} is empty; expected at least one item")


def _item(data: Any, index: int, where: str) -> tuple[Any, int]:
    try:
        item = data[index]
    except ConvoyError:
        raise
    except Exception as error:  # the user's own code
        raise DataError(f"{where} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise DataError(f"{where} is a {type(item).__name__}; expected a pair (image, label)")
    try:
        return item[0], operator.index(item[1])
    except TypeError as error:
        raise DataError(
            f"{where}: the label is {item[1]!r}; expected a whole number from 0"
        ) from error


def _class_names(data: Any, where: str) -> tuple[str, ...]:
    for holder in _wrapped(data):
        classes = getattr(holder, "classes", None)
        if isinstance(classes, Sequence) and not isinstance(classes, str) and classes:
            return tuple(str(name) for name in classes)
    for holder in _wrapped(data):
        for attribute in ("targets", "labels"):
            labels = _whole_numbers(getattr(holder, attribute, None))
            if labels and getattr(holder, "target_transform", None) is None:
                return number_names(max(labels) + 1)
    labels = [_item(data, index, f"{where}, item {index}")[1] for index in range(len(data))]
    return number_names(max(max(labels) + 1, 1))


def _whole_numbers(values: Any) -> list[int]:
    """`values`, a list, array or tensor, as integers; empty if it is not one number per sample."""
    try:
        listed = values.tolist() if hasattr(values, "tolist") else values
        return [operator.index(value) for value in listed]
    except TypeError:
        return []


def _wrapped(data: Any) -> list[Any]:
    """`data` and, where it is a torch Subset or the like, what lies inside it."""
    chain = [data]
    while len(chain) < 10 and hasattr(chain[-1], "dataset"):
        chain.append(chain[-1].dataset)
    return chain
