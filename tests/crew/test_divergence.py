"""Training stops where the loss is no longer a number, and keeps what was good."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch
from safetensors.torch import load_file

from .ours import POISONED_STEP
from .processes import Harbour
from .reference import NETWORK, SAME


def checkpoints(run: Path) -> list[int]:
    """The steps that checkpoints are kept of; all of them are good."""
    found = sorted((run / "checkpoints").iterdir(), key=lambda p: int(p.name.split("-")[1]))
    for path in found:
        tensors = load_file(path / "state-0.safetensors")
        assert all(torch.isfinite(t).all() for t in tensors.values())
    return [int(path.name.split("-")[1]) for path in found]


def test_data_that_are_no_numbers(harbour: Harbour, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = harbour.command(
        *("train", "--network", NETWORK, "--data", "ours:poisoned", "--workers", "2"),
        *("--strategy", "data"),
        *("--epochs", "1", "--checkpoint-every", "3", "--out", str(run)),
    )
    assert done["code"] == 1
    assert done["stderr"].startswith("error: the loss became nan")
    assert f"at step {POISONED_STEP} on rank 1 ({platform.node()})" in done["stderr"]
    assert "lower --lr" in done["stderr"]
    assert "Traceback" not in done["stderr"]
    assert checkpoints(run) == [3, 6]
    assert not (run / "model.safetensors").exists()


def test_a_learning_rate_that_is_too_high(harbour: Harbour, tmp_path: Path) -> None:
    run = tmp_path / "run"
    answer = harbour.train(
        folder=tmp_path,
        network=NETWORK,
        data="digits",
        options=SAME | {"workers": 2, "epochs": 3, "lr": 1e6, "checkpoint_every": 1, "out": run},
    )
    kind, text = answer["error"]
    assert kind == "DivergedError"
    assert re.search(rf"step \d+ on rank [01] \({re.escape(platform.node())}\)", text)
    assert (run / "checkpoints").is_dir(), text  # it says when it was
    assert checkpoints(run)
