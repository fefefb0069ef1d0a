"""A folder of pictures, one folder per class below it.

    PATH/train/cat/1.png  PATH/test/cat/7.png      two splits, as they are
    PATH/cat/1.png  PATH/dog/2.jpg                 one split: a fifth is held back, by seed

Pictures are decoded when a batch asks for them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import final

from PIL import Image
from torch import Tensor

from convoy.datasets.base import DataSet, Shape
from convoy.datasets.lazy import Reader, read_lazily
from convoy.datasets.pictures import check_picture_shape, picture_shape, picture_tensor
from convoy.datasets.split import stratified_split
from convoy.errors import DataError, UsageError

FORM = "folder:PATH"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
"""What counts as a picture, in any case of letters; other files are passed over."""


@final
class PictureFiles(Reader):
    """Decodes `paths`, relative to `root`, to `image_shape`; `targets` are their labels."""

    threads = True

    def __init__(
        self, root: Path, paths: tuple[str, ...], targets: tuple[int, ...], image_shape: Shape
    ) -> None:
        self.root, self.paths, self.targets = root, paths, targets
        self.image_shape = image_shape

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> tuple[Tensor, int]:
        """See Reader. Raises DataError that names the file."""
        path = self.root / self.paths[index]
        try:
            with Image.open(path) as picture:
                # A JPEG's decoder can skip detail that resizing would throw away.
                picture.draft("L" if self.image_shape[0] == 1 else "RGB", self.image_shape[:0:-1])
                return picture_tensor(picture, self.image_shape), self.targets[index]
        except Exception as error:
            raise _broken(path, error) from error


@dataclass(frozen=True, kw_only=True)
class _Listing:
    """The pictures of one split, relative to the folder that was asked for."""

    class_names: tuple[str, ...]
    paths: tuple[str, ...]
    targets: tuple[int, ...]

    def take(self, indices: list[int]) -> _Listing:
        return _Listing(
            class_names=self.class_names,
            paths=tuple(self.paths[index] for index in indices),
            targets=tuple(self.targets[index] for index in indices),
        )


def open_folder(spec: str, *, image_shape: Shape | None = None, seed: int = 0) -> DataSet:
    """Open `folder:PATH`; PATH is relative to the working directory and may begin with ~.

    Pictures become `image_shape`, by default that of the first one. Their mean
    and std are estimated from a sample (channels.estimate). Raises DataError.
    """
    text = spec.removeprefix("folder:")
    if not text or text == spec:
        raise UsageError(f"data set {spec!r}: expected {FORM}, such as folder:~/pictures")
    if image_shape is not None:
        check_picture_shape(image_shape)
    root = Path(text).expanduser().absolute()
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}; expected a folder with one folder per class")
    try:
        train, test = _splits(root, seed)
    except OSError as error:
        raise DataError(f"cannot list the pictures in {root}: {error}") from error
    shape = image_shape or _shape_of(root / train.paths[0])
    readers = [
        PictureFiles(root, listing.paths, listing.targets, shape) for listing in (train, test)
    ]
    return read_lazily(spec, readers[0], readers[1], class_names=train.class_names)


def _splits(root: Path, seed: int) -> tuple[_Listing, _Listing]:
    # A class may well be called "train"; then there are pictures right inside it.
    present = {name for name in ("train", "test") if _subfolders(root / name)}
    if not present:
        everything = _list(root, root)
        train, test = stratified_split(everything.paths, everything.targets, seed=seed)
        if not test:
            raise DataError(
                f"{root} has too few pictures to hold any back for testing; expected at least "
                "two of a class"
            )
        return everything.take(train), everything.take(test)
    if len(present) == 1:
        there = present.pop()
        absent = "test" if there == "train" else "train"
        raise DataError(
            f"{root} has {there}/ but no {absent}/ with one folder per class; add it, or say "
            f"folder:{root / there} to hold a fifth of that back for testing"
        )
    train_list = _list(root, root / "train")
    return train_list, _list(root, root / "test", train_list.class_names)


def _list(root: Path, split: Path, known: tuple[str, ...] | None = None) -> _Listing:
    """The pictures below `split`; `known` are the classes there may be, if they are settled."""
    names = _subfolders(split)
    if not names:
        loose = any(_is_picture(path.name) for path in split.iterdir())
        raise DataError(
            f"{split} has pictures but no classes; put them into one folder per class"
            if loose
            else f"{split} is empty; expected one folder of pictures per class"
        )
    if extra := sorted(set(names) - set(known if known is not None else names)):
        raise DataError(
            f"{split} has classes that are not in training: {', '.join(extra)}; "
            f"expected among {', '.join(known or ())}"
        )
    class_names = known or tuple(names)
    paths: list[str] = []
    targets: list[int] = []
    for name in names:
        found = _pictures(split / name)
        if not found and known is None:
            raise DataError(
                f"{split / name} is empty: expected pictures ({', '.join(SUFFIXES)}) of the class "
                f"{name!r}"
            )
        paths.extend(path.relative_to(root).as_posix() for path in found)
        targets.extend([class_names.index(name)] * len(found))
    if not paths:
        raise DataError(f"{split} is empty: its classes hold no pictures ({', '.join(SUFFIXES)})")
    return _Listing(class_names=class_names, paths=tuple(paths), targets=tuple(targets))


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    """All pictures below `folder`, however deep, in an order that no file system decides."""

    def fail(error: OSError) -> None:  # os.walk would pass over what it may not read
        raise error

    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder, onerror=fail)
        for name in names
        if _is_picture(name)
    )


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _shape_of(path: Path) -> Shape:
    try:
        with Image.open(path) as picture:
            return picture_shape(picture)
    except Exception as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> DataError:
    """Decoders fail in every way there is, so whatever they raised becomes this."""
    return DataError(
        f"cannot read the picture {path}: {type(error).__name__}: {error}; mend or remove it"
    )
