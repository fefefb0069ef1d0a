from __future__ import annotations

import pickle

import pytest

from convoy import errors
from convoy.errors import ConvoyError, UnknownNameError, UsageError, describe_unknown, nearest

MANY = [f"network-{letter}" for letter in "abcdefghijklm"]
FEW = ["sgd", "adam", "adamax"]


def test_the_nearest_come_first() -> None:
    assert nearest("adamx", FEW) == ["adamax", "adam"]
    assert nearest("ADAM", FEW)[0] == "adam"
    assert nearest("zzz", FEW) == []
    assert nearest("", FEW) == []
    assert len(nearest("network-", MANY)) == 3
    assert len(nearest("network-", MANY, count=5)) == 5


def test_few_known_names_are_all_listed() -> None:
    said = describe_unknown("optimizer", "adan", FEW)
    assert said == "unknown optimizer 'adan'. Nearest: adam, adamax. Known: adam, adamax, sgd."


def test_of_many_known_names_the_nearest_do() -> None:
    said = describe_unknown("network", "network-a1", MANY, hint="Or package.module:function.")
    assert said.startswith("unknown network 'network-a1'. Nearest: network-a, ")
    assert said.endswith(". Or package.module:function.")
    assert "Known" not in said


def test_a_name_that_is_near_none_is_offered_all() -> None:
    said = describe_unknown("network", "qqq", MANY)
    assert said == f"unknown network 'qqq'. Known: {', '.join(MANY)}."


def test_known_names_may_be_any_iterable() -> None:
    error = UnknownNameError("optimizer", "adan", (name for name in FEW))
    assert str(error) == describe_unknown("optimizer", "adan", FEW)
    assert error.known == sorted(FEW)


def test_an_unknown_name_travels_between_processes() -> None:
    error = UnknownNameError("optimizer", "adan", FEW, "Or none.")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is UnknownNameError
    assert str(back) == str(error)
    assert (back.kind, back.name, back.known, back.hint) == (
        "optimizer",
        "adan",
        sorted(FEW),
        "Or none.",
    )


ALL = [
    found
    for found in vars(errors).values()
    if isinstance(found, type) and issubclass(found, ConvoyError)
]


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind is not UnknownNameError])
def test_every_error_travels_between_processes(kind: type[ConvoyError]) -> None:
    back = pickle.loads(pickle.dumps(kind("what and why")))
    assert (type(back), str(back)) == (kind, "what and why")


def test_the_tree_is_as_it_is_drawn() -> None:
    drawn = errors.__doc__ or ""
    for kind in ALL:
        assert kind.__name__ in drawn
    usage = {kind.__name__ for kind in ALL if issubclass(kind, UsageError)}
    known = {"UsageError", "UnknownNameError", "ClusterError", "ProfileError", "ManifestError"}
    assert usage == known
