from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

Convoy = Callable[..., Any]


def test_as_json(convoy: Convoy) -> None:
    ran = convoy("layers", "lenet", "--json")
    found = json.loads(ran.out)
    assert (ran.status, found["network"], found["input"]) == (0, "lenet", [1, 28, 28])
    assert found["totals"]["parameter_bytes"] == 4 * 431_080
    first = found["layers"][0]
    assert (first["type"], first["kernel"]) == ("Conv2d", [5, 5])
    assert first["macs"] == 20 * 24 * 24 * 25
    assert first.keys() >= {
        *("name", "input", "lowered", "weight", "output", "parameter_bytes", "activation_bytes")
    }


def test_as_a_table(convoy: Convoy) -> None:
    ran = convoy("layers", "cifar10-full", "--input", "3x16x16", "--classes", "4")
    assert ran.status == 0
    assert "cifar10-full, one image of 3x16x16" in ran.out
    assert f"{32 * 16 * 16 * 75:,}" in ran.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["resnet19"], "unknown network 'resnet19'"),
        (["lenet", "--input", "28x28"], "--input 28x28: expected channels x height x width"),
        (["lenet", "--input", "1x2x2"], "lenet"),
        (["chavan:5-50-100-10"], "say which with --input"),
    ],
)
def test_wrong_usage(convoy: Convoy, arguments: list[str], said: str) -> None:
    ran = convoy("layers", *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert said in ran.err
