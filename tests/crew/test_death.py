"""A rank dies in the middle of an epoch, and training goes on without losing anything."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

import pytest

from .processes import Harbour
from .reference import (
    NETWORK,
    STEPS_PER_EPOCH,
    assert_each_sample_once,
    assert_weights,
    effective,
    lines,
)

SHARES = {"workers": 3, "shares": "1,2,5", "precision": "fp64", "memory_format": "contiguous"}
DIED = re.compile(r"rank (\d) on (\S+) died in step (\d+); (\d) of 3 go on from there")


def deaths(answer: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rank, machine, step, survivors: of every death that was warned of."""
    found = [DIED.search(text) for level, text in answer["said"] if level == "warning"]
    return [match.groups() for match in found if match]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("share", "rank"), [(8, 0), (40, 2)])
def test_the_others_go_on_and_the_lost_rank_comes_back(
    harbour: Harbour, tmp_path: Path, share: int, rank: int
) -> None:
    steps = 30 * STEPS_PER_EPOCH
    answer = harbour.train(
        folder=tmp_path,
        network=NETWORK,
        data="slow",
        options=SHARES | {"epochs": 30, "out": tmp_path / "run"},
        **{"deed": "kill", "at": 9, "to": [share], "hurry_after": "joins"},
        timeout_s=90,
    )
    assert answer["error"] is None
    run = tmp_path / "run"
    assert_weights(run, steps)
    assert_each_sample_once(run, steps)

    generations = {g: step for step, found in effective(run).items() for g in [found[0]["generation"]]}
    by_step = effective(run)
    first_of = {found[0]["generation"]: step for step, found in reversed(by_step.items())}
    assert list(reversed(first_of)) == [1, 2, 3], generations
    assert 9 < first_of[2] < STEPS_PER_EPOCH - 1
    assert deaths(answer) == [(str(rank), platform.node(), str(first_of[2]), "2")]
    assert [line["samples"] for line in by_step[0]] == [8, 16, 40]
    assert [line["samples"] for line in by_step[first_of[2]]] == {0: [18, 46], 2: [21, 43]}[rank]
    assert [line["samples"] for line in by_step[first_of[3]]] == [8, 16, 40]
    assert any(f"joins at step {first_of[3]}" in text for _, text in answer["said"])

    result = answer["result"]
    assert (result["reformations"], result["samples_seen"]) == (1, 30 * 1437)
    assert len(result["machines"]) == 3
    (recovery,) = result["recoveries"]
    assert recovery["step"] == first_of[2]
    assert recovery["lost"] == [platform.node()]
    assert 0 < recovery["seconds"] < 30


@pytest.mark.timeout(90)
def test_a_rank_that_trains_alone_dies(harbour: Harbour, tmp_path: Path) -> None:
    steps = 2 * STEPS_PER_EPOCH
    options = {"strategy": "averaging", "average_every": 4, "epochs": 2, "out": tmp_path / "run"}
    answer = harbour.train(
        folder=tmp_path,
        network=NETWORK,
        data="slow",
        options=SHARES | options,
        **{"deed": "kill", "at": 9, "to": [16]},
    )
    assert answer["error"] is None
    run = tmp_path / "run"
    assert_each_sample_once(run, steps)
    assert answer["result"]["reformations"] == 1
    ((rank, _, step, _),) = deaths(answer)
    assert rank == "1"
    assert int(step) % 4 == 0  # nothing since the last average is left
    again = next(s for s, found in effective(run).items() if found[0]["generation"] == 2)
    assert again == int(step)
    done_in_vain = [l for l in lines(run) if l["generation"] == 1 and l["step"] >= again]
    assert {line["step"] for line in done_in_vain} <= set(range(again, again + 4))


@pytest.mark.timeout(90)
def test_a_rank_that_hangs_is_given_up_on(harbour: Harbour, tmp_path: Path) -> None:
    steps = STEPS_PER_EPOCH
    answer = harbour.train(
        folder=tmp_path,
        network=NETWORK,
        data="slow",
        options=SHARES | {"epochs": 1, "out": tmp_path / "run", "timeout_s": 5},
        **{"deed": "stop", "at": 9, "to": [16]},
    )
    assert answer["error"] is None
    assert_weights(tmp_path / "run", steps)
    assert_each_sample_once(tmp_path / "run", steps)
    assert [rank for rank, *_ in deaths(answer)] == ["1"]
    assert answer["result"]["reformations"] == 1
