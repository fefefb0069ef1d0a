from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from convoy.datasets import open_dataset
from convoy.errors import DataError, UsageError

MODULE = """
import numpy
from convoy.errors import DataError

answer = 42

def _items(count):
    return [(numpy.full((2, 2), n, dtype=numpy.uint8), n % 2) for n in range(count)]

def load():
    return _items(4), _items(2)

def load_from(data_dir):
    count = int((data_dir / "count").read_text())
    return {"train": _items(count), "test": _items(2)}

class Loaders:
    load = staticmethod(load)

def broken():
    return 1 / 0

def careful():
    raise DataError("the disk is away")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the user's own in the working directory."""
    (tmp_path / "users_sets.py").write_text(MODULE)
    (tmp_path / "faulty_sets.py").write_text("import nothing_of_this_name\n")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    monkeypatch.chdir(tmp_path)
    yield "users_sets"
    for name in ("users_sets", "faulty_sets"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("function", ["load", "Loaders.load"])
def test_a_function_in_the_working_directory(module: str, function: str) -> None:
    data = open_dataset(f"{module}:{function}")
    assert data.name == f"{module}:{function}"
    assert (len(data.train), len(data.test), data.train.num_classes) == (4, 2, 2)


def test_a_function_that_asks_is_told_where_files_lie(module: str, tmp_path: Path) -> None:
    (tmp_path / "count").write_text("7")
    assert len(open_dataset(f"{module}:load_from", data_dir=tmp_path).train) == 7


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_sets:load", "module .no_such_sets. not found"),
        ("faulty_sets:load", "importing .faulty_sets. failed.*nothing_of_this_name"),
        ("users_sets:laod", "'users_sets' has no 'laod'; nearest: load"),
        ("users_sets:Loaders.load.more", "has no 'more'"),
        ("users_sets:answer", "it is a value of type int; expected a function"),
    ],
)
def test_what_cannot_be_imported(module: str, spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_dataset(spec)
    assert repr(spec) in str(caught.value)


def test_a_function_that_fails(module: str) -> None:
    with pytest.raises(DataError, match="'users_sets:broken': the function failed: ZeroDivision"):
        open_dataset("users_sets:broken")
    with pytest.raises(DataError, match=r"^the disk is away$"):
        open_dataset("users_sets:careful")
