"""Networks and data that only the user's script knows."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from .processes import PATIENCE_S, Harbour
from .reference import SAME, assert_each_sample_once


@pytest.mark.parametrize(("network", "workers"), [("class", 2), ("instance", 1)])
def test_a_network_and_data_of_the_script(
    harbour: Harbour, tmp_path: Path, network: str, workers: int
) -> None:
    run = tmp_path / "run"
    answer = harbour.train(
        folder=tmp_path,
        network=network,
        data="tensors",
        options=SAME | {"workers": workers, "epochs": 2, "out": run},
    )
    assert answer["error"] is None
    assert answer["result"]["network"] == "python:Mine"
    assert answer["result"]["test_accuracy"] > 0.6
    assert_each_sample_once(run, 46)
    weights = load_file(run / "model.safetensors")
    assert {name: tuple(t.shape) for name, t in weights.items()} == {
        "hidden.weight": (16, 64),
        "hidden.bias": (16,),
        "output.weight": (10, 16),
        "output.bias": (10,),
    }
    assert all(torch.isfinite(t).all() for t in weights.values())


def test_a_network_that_fails_on_one_rank(harbour: Harbour, tmp_path: Path) -> None:
    began = time.monotonic()
    answer = harbour.train(
        folder=tmp_path,
        network="failing",
        data="digits",
        options=SAME
        | {"workers": 2, "shares": "3,5", "epochs": 2, "timeout_s": 600}
        | {"out": tmp_path / "run"},
    )
    took_s = time.monotonic() - began
    kind, text = answer["error"]
    assert kind == "CrewError"
    assert "rank 1" in text
    assert "in broken_helper" in text  # the user's own traceback
    assert "shape '[7, -1]' is invalid" in text
    assert took_s < PATIENCE_S  # and not --timeout-s later
