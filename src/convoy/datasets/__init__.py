"""Data sets: named ones, folders, made-up ones and the user's own, behind one interface."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pooch

from convoy.datasets.base import DataSet, ImageData, Shape, shape_text
from convoy.datasets.cifar10 import open_cifar10
from convoy.datasets.digits import open_digits
from convoy.datasets.download import OFFICIAL, Sources
from convoy.datasets.folder import FORM as FOLDER_FORM
from convoy.datasets.folder import open_folder
from convoy.datasets.imported import call
from convoy.datasets.items import open_items
from convoy.datasets.mnist import open_mnist
from convoy.datasets.synthetic import FORM as SYNTHETIC_FORM
from convoy.datasets.synthetic import open_synthetic
from convoy.errors import UnknownNameError, UsageError
from convoy.user_code import FORM as IMPORT_FORM
from convoy.user_code import is_import, load_function

__all__ = ["DataSet", "DataSpec", "ImageData", "Sources", "default_dir", "names", "open_dataset"]

DataSpec: TypeAlias = "str | DataSet | tuple[Any, Any] | Mapping[str, Any] | Callable[..., Any]"
"""A name or form (see `open_dataset`), a DataSet, a pair or mapping of torch data sets, or a
function that returns any of these three."""

_NAMED: dict[str, Callable[[Path, Sources], DataSet]] = {
    "digits": lambda _dir, _sources: open_digits(),
    "mnist": open_mnist,
    "cifar10": open_cifar10,
}


def names() -> list[str]:
    """The data sets that have a name; `open_dataset` tells the other forms."""
    return sorted(_NAMED)


def default_dir() -> Path:
    """Where files lie when nobody says: CONVOY_DATA, else the user's cache (~/.cache/convoy)."""
    told = os.environ.get("CONVOY_DATA")
    return Path(told).expanduser() if told else Path(pooch.os_cache("convoy"))


def open_dataset(
    spec: DataSpec,
    *,
    data_dir: Path | None = None,
    image_shape: Shape | None = None,
    seed: int = 0,
    sources: Sources = OFFICIAL,
) -> DataSet:
    """Open a data set.

        open_dataset("digits")                       # or mnist, cifar10
        open_dataset("folder:~/pictures", image_shape=(3, 64, 64))
        open_dataset("synthetic:3x32x32:10")
        open_dataset("mypackage.data:load")          # a function that returns (train, test)
        open_dataset((train, test))                  # torch map-style data sets

    `data_dir` (default: `default_dir()`) is where mnist and cifar10 are looked
    for, or downloaded to from `sources`. `image_shape` is what pictures are
    resized to; images that are not pictures must have it already. `seed`
    decides what a folder without train/ and test/ holds back, and nothing else.

    Raises UsageError for a request that is wrong and DataError for files that are.
    """
    where = (data_dir or default_dir()).expanduser()
    if not isinstance(spec, str):
        return _open_object(spec, where, image_shape, _name_of(spec))
    if spec in _NAMED:
        return _of_shape(_NAMED[spec](where, sources), image_shape)
    kind, colon, _ = spec.partition(":")
    if kind == "synthetic":
        return _of_shape(open_synthetic(spec), image_shape)
    if kind == "folder" and colon:
        return open_folder(spec, image_shape=image_shape, seed=seed)
    if is_import(spec):
        return _open_object(
            load_function(spec, kind="data set", returns="(train, test)"), where, image_shape, spec
        )
    forms = (FOLDER_FORM, SYNTHETIC_FORM, IMPORT_FORM)
    raise UnknownNameError("data set", spec, names(), f"Or: {', '.join(forms)}.")


def _open_object(found: Any, data_dir: Path, image_shape: Shape | None, name: str) -> DataSet:
    if not isinstance(found, (DataSet, Mapping, tuple, list)) and callable(found):
        found = call(found, data_dir, name)
    if isinstance(found, DataSet):
        return _of_shape(found, image_shape)
    if isinstance(found, Mapping) and {"train", "test"} <= set(found):
        found = (found["train"], found["test"])
    if isinstance(found, (tuple, list)) and len(found) == 2:
        return open_items(name, found[0], found[1], image_shape=image_shape)
    what = type(found).__name__
    if isinstance(found, Mapping):
        what += f" with the keys {', '.join(str(key) for key in found) or '(none)'}"
    elif isinstance(found, (tuple, list)):
        what += f" of {len(found)}"
    raise UsageError(
        f"data set {name!r}: found a {what}; expected (train, test) or a mapping with those keys, "
        "of torch map-style data sets, or a convoy.datasets.DataSet"
    )


def _of_shape(data: DataSet, image_shape: Shape | None) -> DataSet:
    found = data.train.image_shape
    if image_shape is not None and tuple(image_shape) != found:
        raise UsageError(
            f"data set {data.name!r} has images of {shape_text(found)}, not "
            f"{shape_text(image_shape)}; only pictures (folder:PATH, PIL images) are resized"
        )
    return data


def _name_of(spec: Any) -> str:
    if isinstance(spec, Mapping) and "train" in spec:
        spec = spec["train"]
    elif isinstance(spec, (tuple, list)) and spec:
        spec = spec[0]
    return str(getattr(spec, "__name__", type(spec).__name__))
