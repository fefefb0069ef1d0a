"""One rank becomes slow in the middle of a run; shares follow, and nothing else changes."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

from .processes import Harbour
from .reference import (
    NETWORK,
    SAME,
    STEPS_PER_EPOCH,
    assert_each_sample_once,
    assert_weights,
    effective,
)

NUM_EPOCHS = 5
OPTIONS = SAME | {"precision": "fp64", "epochs": NUM_EPOCHS, "threads_per_worker": 1}
CUT = re.compile(
    rf"rank \d on {re.escape(platform.node())} computes [\d.]+ times as long as (?:planned|the "
    r"others): shares from ([\d/]+) to ([\d/]+) at step (\d+)"
)


def cuts(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """What was said of shares that were cut anew, as result.json has it."""
    found = [CUT.fullmatch(text) for _, text in answer["said"] if "shares from" in text]
    assert all(found)
    return [
        {"step": int(m[3])}
        | {key: [int(n) for n in m[i].split("/")] for i, key in ((1, "from"), (2, "to"))}
        for m in found
        if m
    ]


def samples(run: Path) -> list[list[int]]:
    """The shares of every whole step."""
    return [[line["samples"] for line in found] for found in effective(run).values()]


def test_shares_follow_a_rank_that_slows_down(harbour: Harbour, tmp_path: Path) -> None:
    run = tmp_path / "run"
    answer = harbour.train(
        folder=tmp_path,
        network=NETWORK,
        data="dragging",
        options=OPTIONS | {"workers": 2, "out": run},
        hurry_after="shares from",
    )
    assert answer["error"] is None
    assert_weights(run, NUM_EPOCHS * STEPS_PER_EPOCH)
    assert_each_sample_once(run, NUM_EPOCHS * STEPS_PER_EPOCH)

    result = answer["result"]
    assert (result["reformations"], result["recoveries"]) == (0, [])
    assert result["samples_seen"] == NUM_EPOCHS * 1437
    assert result["rebalancings"] == cuts(answer)
    first = result["rebalancings"][0]
    assert first["from"] == [32, 32]
    assert first["to"][1] < 24 < 40 < first["to"][0]
    taken = samples(run)
    assert taken[0] == first["from"]
    assert taken[first["step"] + (first["step"] % STEPS_PER_EPOCH == 22)] == first["to"]
    assert len({line["generation"] for found in effective(run).values() for line in found}) == 1 + (
        len(result["rebalancings"])
    )


def test_what_was_learnt_outlives_a_rank_that_dies(harbour: Harbour, tmp_path: Path) -> None:
    run = tmp_path / "run"
    answer = harbour.train(
        folder=tmp_path,
        network=NETWORK,
        data="dragging",
        options=OPTIONS | {"workers": 3, "epochs": 12, "out": run},
        **{"then": [22], "then_after": "shares from", "hurry_after": "joins"},
    )
    assert answer["error"] is None
    assert_weights(run, 12 * STEPS_PER_EPOCH)
    assert_each_sample_once(run, 12 * STEPS_PER_EPOCH)

    result = answer["result"]
    assert result["reformations"] == 1
    assert result["rebalancings"] == cuts(answer)
    first = result["rebalancings"][0]
    assert first["from"] == [22, 21, 21]
    assert first["to"][1] < 16
    alone = next(shares for shares in samples(run) if len(shares) == 2 and sum(shares) == 64)
    assert alone[0] < 24  # of those that are left, the slow one is now the first
    back = [shares for shares in samples(run)[first["step"] :] if sum(shares) == 64][-1]
    assert len(back) == 3
    assert back[1] < 16
