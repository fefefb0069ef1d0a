"""Names: what is offered, what is built, and in which words everything else is refused."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from convoy.errors import ConvoyError, UnknownNameError, UsageError
from convoy.networks import build, names

SHAPE = (3, 32, 32)


def refused(name: str, text: str, **changes: Any) -> None:
    with pytest.raises(UsageError, match=re.escape(text)):
        build(name, **{"input_shape": SHAPE, "num_classes": 10, **changes})


def test_names_are_what_a_user_may_write() -> None:
    assert {"lenet5", "cifar10-full", "marques:K1:K2", "chavan:K-F-D-C"} <= set(names())
    assert len(names()) == len(set(names()))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet81", "resnet18"),
        ("ResNet18", "resnet18"),
        ("cifar10_full", "cifar10-full"),
        ("marqes:50:500", "marques:K1:K2"),
    ],
)
def test_unknown_names_offer_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown network") as caught:
        build(name, input_shape=SHAPE, num_classes=10)
    assert nearest in str(caught.value)
    assert "Or package.module:function." in str(caught.value)


@pytest.mark.parametrize("name", ["", "zzz", "lenet5:", ":function", "a b:c", "lenet5:5"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown network {name!r}"):
        build(name, input_shape=SHAPE, num_classes=10)


@pytest.mark.parametrize(
    "name",
    [
        *("marques", "marques:", "marques:50", "marques:50:", "marques:0:5", "marques:K1:K2"),
        *("marques:5:5:5", "marques:-1:5", "marques:5:5 ", "marques:a:b", "marques:٥:٥"),
    ],
)
def test_malformed_marques(name: str) -> None:
    refused(
        name,
        f"network {name!r} is malformed: expected marques:K1:K2 (filters), whole numbers from 1, "
        "for example marques:50:500",
    )


@pytest.mark.parametrize("name", ["chavan", "chavan:5", "chavan:5-50-100", "chavan:5-0-100-10"])
def test_malformed_chavan(name: str) -> None:
    refused(
        name,
        f"network {name!r} is malformed: expected chavan:K-F-D-C (kernel side, filters, dense "
        "units, classes), whole numbers from 1, for example chavan:5-50-100-10",
    )


def test_chavan_with_other_classes() -> None:
    refused(
        "chavan:5-50-100-10",
        "network 'chavan:5-50-100-10' ends in 10 classes, but 7 are needed; write "
        "chavan:5-50-100-7",
        num_classes=7,
    )


@pytest.mark.parametrize("shape", [(3, 32), (3, 0, 32), (0, 32, 32), (1, 3, 32, 32), (3, -1, 5)])
def test_shapes_that_are_none(shape: tuple[int, ...]) -> None:
    refused(
        "lenet",
        f"input_shape is {shape}; expected (channels, height, width), each at least 1",
        input_shape=shape,
    )


def test_no_classes() -> None:
    refused("lenet", "num_classes is 0; expected at least 1", num_classes=0)


UserModule = Callable[[str], None]


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UserModule]:
    """Writes the working directory's `nets_of_a_user.py`, which `build` is to find there."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> None:
        (tmp_path / "nets_of_a_user.py").write_text(f"from torch import nn\n{text}\n")

    yield write
    sys.modules.pop("nets_of_a_user", None)


@pytest.mark.parametrize(
    ("parameters", "features"),
    [
        ("", 9),
        ("input_shape, num_classes", 320),
        ("*, num_classes, input_shape, extra=1", 320),
        ("**settings", 320),
        ("num_classes=9", 10),
        ("num_classes=9, /", 9),
    ],
)
def test_a_users_function_gets_what_it_takes(
    user_module: UserModule, parameters: str, features: int
) -> None:
    user_module(
        f"def make({parameters}):\n"
        "    given = dict(locals())\n"
        "    given.update(given.pop('settings', {}))\n"
        "    size = given.get('num_classes', 9) * given.get('input_shape', (1, 1, 1))[1]\n"
        "    return nn.Sequential(nn.Flatten(), nn.LazyLinear(size))"
    )
    network = build("nets_of_a_user:make", input_shape=SHAPE, num_classes=10)
    assert isinstance(network, nn.Sequential)
    assert network[1].out_features == features


def test_a_class_or_an_attribute_is_a_function_too(user_module: UserModule) -> None:
    user_module("class Zoo:\n    class Net(nn.Linear):\n        pass")
    refused("nets_of_a_user:Zoo.Net", "missing a required argument: 'in_features'")
    assert isinstance(build("torch.nn:Identity", input_shape=SHAPE, num_classes=2), nn.Identity)


def test_the_function_itself() -> None:
    def make(num_classes: int) -> nn.Module:
        return nn.Linear(2, num_classes)

    for function in (make, functools.partial(make)):
        network = build(function, input_shape=SHAPE, num_classes=6)
        assert isinstance(network, nn.Linear)
        assert network.out_features == 6
    with pytest.raises(UsageError, match="network 'partial': the function returned nothing"):
        build(functools.partial(lambda: None), input_shape=SHAPE, num_classes=6)
    with pytest.raises(UsageError, match="network 'make': num_classes is 0"):
        build(make, input_shape=SHAPE, num_classes=0)


def test_module_not_found(user_module: UserModule) -> None:
    user_module("")
    refused("no_such_module_of_a_user:make", "module 'no_such_module_of_a_user' not found")
    refused("torch.no_such_part:make", "module 'torch.no_such_part' not found; expected package.")


def test_module_that_fails_to_import(user_module: UserModule) -> None:
    user_module("import no_such_module_of_a_user")
    refused(
        "nets_of_a_user:make",
        "importing 'nets_of_a_user' failed: ModuleNotFoundError: No module named",
    )


def test_no_such_function(user_module: UserModule) -> None:
    user_module("def small_net(): pass\nVERSION = 3")
    refused(
        "nets_of_a_user:small_nett",
        "no such function: 'nets_of_a_user' has no 'small_nett'; nearest: small_net",
    )
    refused("nets_of_a_user:VERSION", "it is a value of type int; expected a function")


@pytest.mark.parametrize(
    ("value", "said"),
    [("None", "returned nothing (None)"), ("[1]", "returned a value of type list")],
)
def test_something_else_was_returned(user_module: UserModule, value: str, said: str) -> None:
    user_module(f"def make(): return {value}")
    refused("nets_of_a_user:make", f"the function {said}; expected a torch.nn.Module")


def test_a_function_that_needs_more(user_module: UserModule) -> None:
    user_module("def make(num_classes, depth): pass")
    refused(
        "nets_of_a_user:make",
        "missing a required argument: 'depth', and (num_classes, depth) are its parameters; it "
        "may require input_shape and num_classes, nothing else",
    )


def test_a_function_that_fails(user_module: UserModule) -> None:
    user_module("def make(): raise ValueError('odd size')")
    refused("nets_of_a_user:make", "the function failed: ValueError: odd size")
    user_module("")


def test_convoys_own_errors_pass_through(user_module: UserModule) -> None:
    user_module("from convoy.errors import ConvoyError\ndef make(): raise ConvoyError('say this')")
    with pytest.raises(ConvoyError, match=r"^say this$"):
        build("nets_of_a_user:make", input_shape=SHAPE, num_classes=10)


def test_built_under_meta_nothing_is_drawn() -> None:
    state = torch.get_rng_state()
    with torch.device("meta"):
        network = build("lenet5", input_shape=(1, 28, 28), num_classes=10)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)
