"""A rank dies or hangs in the middle of an epoch; the others go on and nothing is lost."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

from .ours import TwoLayers
from .processes import Harbour, lives
from .reference import (
    NETWORK,
    SAME,
    STEPS_PER_EPOCH,
    assert_each_sample_once,
    assert_weights,
    effective,
    lines,
)

OPTIONS = SAME | {"workers": 3, "shares": "1,2,5", "precision": "fp64"}
"""Shares of a batch are 8, 16 and 40, which tells the ranks apart."""
DIED = re.compile(r"rank (\d) on (\S+) died in step \d+; (\d) of \d go on from step (\d+)")


def deaths(answer: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rank, machine, step and survivors of every death that was warned of."""
    found = [DIED.search(text) for level, text in answer["said"] if level == "warning"]
    return [match.groups() for match in found if match]


def first_steps(run: Path) -> dict[int, int]:
    """The first step of every crew, by generation."""
    crews = {step: found[0]["generation"] for step, found in effective(run).items()}
    return {generation: step for step, generation in sorted(crews.items(), reverse=True)}


def shares(run: Path, step: int) -> list[int]:
    """The ranks' samples of a step, or of the next where an epoch ends with a short one."""
    whole = step + ((step + 1) % STEPS_PER_EPOCH == 0)
    return [line["samples"] for line in effective(run)[whole]]


def test_the_others_go_on_and_the_lost_rank_comes_back(harbour: Harbour, tmp_path: Path) -> None:
    run, num_epochs = tmp_path / "run", 14
    answer = harbour.train(
        folder=tmp_path,
        network=NETWORK,
        data="slow",
        options=OPTIONS | {"epochs": num_epochs, "out": run},
        **{"deed": "kill", "at": 9, "to": [8], "hurry_after": "joins"},
    )
    assert answer["error"] is None
    assert_weights(run, num_epochs * STEPS_PER_EPOCH)
    assert_each_sample_once(run, num_epochs * STEPS_PER_EPOCH)

    crews = first_steps(run)
    assert sorted(crews) == [1, 2, 3]
    assert 9 < crews[2] < STEPS_PER_EPOCH - 1
    assert deaths(answer) == [("0", platform.node(), "2", str(crews[2]))]
    assert [text for _, text in answer["said"] if "joins" in text] == [
        f"{platform.node()} joins at step {crews[3]}"
    ]
    assert [shares(run, crews[crew]) for crew in (1, 2, 3)] == [[8, 16, 40], [18, 46], [8, 16, 40]]

    result = answer["result"]
    assert (result["reformations"], result["samples_seen"]) == (1, num_epochs * 1437)
    assert len(result["machines"]) == 3
    (recovery,) = result["recoveries"]
    assert (recovery["step"], recovery["lost"]) == (crews[2], [platform.node()])
    assert 0 < recovery["seconds"] < 30


def test_a_rank_dies_while_ranks_train_alone(harbour: Harbour, tmp_path: Path) -> None:
    run = tmp_path / "run"
    answer = harbour.train(
        folder=tmp_path,
        network=NETWORK,
        data="slow",
        options=OPTIONS | {"strategy": "averaging", "average_every": 4, "epochs": 2, "out": run},
        **{"deed": "kill", "at": 9, "to": [16], "hurry_after": "died"},
    )
    assert answer["error"] is None
    assert_each_sample_once(run, 2 * STEPS_PER_EPOCH)
    assert answer["result"]["reformations"] == 1
    ((rank, _, _, step),) = deaths(answer)
    assert (rank, int(step)) == ("1", first_steps(run)[2])
    assert int(step) % 4 == 0  # the last average; what ranks did alone after it is done again
    alone = {line["step"] for line in lines(run) if line["generation"] == 1} - set(range(int(step)))
    assert alone <= set(range(int(step), int(step) + 4))


def test_the_first_rank_dies_while_each_has_a_part(harbour: Harbour, tmp_path: Path) -> None:
    """It alone keeps a copy of all of the state, so that they go back to the checkpoint."""
    run = tmp_path / "run"
    options = OPTIONS | {"strategy": "hybrid", "snapshot_every": 3, "epochs": 2, "out": run}
    answer = harbour.train(
        folder=tmp_path,
        network=NETWORK,
        data="slow",
        options=options | {"checkpoint_every": 8},
        **{"deed": "kill", "at": 13, "to": [8], "hurry_after": "died"},
    )
    assert answer["error"] is None
    assert_weights(run, 2 * STEPS_PER_EPOCH)
    assert_each_sample_once(run, 2 * STEPS_PER_EPOCH)
    ((rank, _, left, step),) = deaths(answer)
    assert (rank, left) == ("0", "2")
    assert int(step) % 8 == 0
    assert int(step) == first_steps(run)[2] > 0


def test_one_that_rests_takes_the_place_of_the_next_to_die(
    harbour: Harbour, tmp_path: Path
) -> None:
    """Two pipelines of two; of three devices a network that is cut once has a use for two, of which
    one dies as they form."""
    run = tmp_path / "run"
    options = {"workers": 4, "shares": "1,1,3,3", "strategy": "pipeline", "pipelines": 2}
    answer = harbour.train(
        folder=tmp_path,
        network="two layers",
        data="slow",
        options=OPTIONS | options | {"snapshot_every": 3, "epochs": 10, "out": run},
        **{"deed": "kill", "at": 9, "to": [16], "then": [48], "then_after": "no use"},
        hurry_after="joins",
    )
    assert answer["error"] is None
    assert_weights(run, 10 * STEPS_PER_EPOCH, build=TwoLayers)
    assert_each_sample_once(run, 10 * STEPS_PER_EPOCH)
    resting = f"the plan has no use for {platform.node()} now"
    # once more where one of the lost is back before the other
    assert {text for _, text in answer["said"] if "no use" in text} == {resting}
    assert [left for _, _, left, _ in deaths(answer)] == ["3", "1"]
    assert answer["result"]["reformations"] == 2
    # all, if the second of the lost was back before the end; three would be one too many again
    assert len(effective(run)[10 * STEPS_PER_EPOCH - 1]) in (2, 4)


def test_the_first_rank_dies_while_the_others_form_anew(harbour: Harbour, tmp_path: Path) -> None:
    run = tmp_path / "run"
    answer = harbour.train(
        folder=tmp_path,
        network=NETWORK,
        data="slow",
        options=OPTIONS | {"epochs": 2, "out": run, "timeout_s": 30},
        **{"deed": "kill", "at": 9, "to": [16], "then": [8], "hurry_after": "died"},
    )
    assert answer["error"] is None
    assert_weights(run, 2 * STEPS_PER_EPOCH)
    assert_each_sample_once(run, 2 * STEPS_PER_EPOCH)
    assert [rank for rank, *_ in deaths(answer)] == ["1", "0"]
    assert min(int(step) for _, _, _, step in deaths(answer)) > 9


def test_the_first_rank_dies_after_the_last_step(harbour: Harbour, tmp_path: Path) -> None:
    run = tmp_path / "run"
    answer = harbour.train(
        folder=tmp_path,
        network=NETWORK,
        data="slow",
        options=OPTIONS | {"epochs": 1, "out": run},
        **{"deed": "kill", "at": STEPS_PER_EPOCH - 1, "to": [8]},
    )
    assert answer["error"] is None
    assert_weights(run, STEPS_PER_EPOCH)
    assert_each_sample_once(run, STEPS_PER_EPOCH)


def test_ctrl_c_while_a_rank_is_lost_keeps_what_was_done(harbour: Harbour, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job: dict[str, Any] = {"folder": tmp_path, "network": NETWORK, "data": "slow"}
    options = OPTIONS | {"epochs": 1, "out": run}
    stopped = harbour.train(**job, options=options, deed="kill and interrupt", at=9, to=[16])
    assert stopped["error"][0] == "KeyboardInterrupt"
    (tmp_path / "hurry").touch()
    resumed = harbour.train(**job, options={"resume": run})
    assert resumed["error"] is None
    assert resumed["result"]["resumed_from_step"] > 9
    assert_weights(run, STEPS_PER_EPOCH)
    assert_each_sample_once(run, STEPS_PER_EPOCH)


def test_a_rank_that_hangs_is_given_up_on(harbour: Harbour, tmp_path: Path) -> None:
    run = tmp_path / "run"
    answer = harbour.train(
        folder=tmp_path,
        network=NETWORK,
        data="slow",
        options=OPTIONS | {"epochs": 1, "out": run, "timeout_s": 4},
        **{"deed": "stop", "at": 9, "to": [40], "hurry_after": "died"},
    )
    assert answer["error"] is None
    assert_weights(run, STEPS_PER_EPOCH)
    assert_each_sample_once(run, STEPS_PER_EPOCH)
    assert [rank for rank, *_ in deaths(answer)] == ["2"]
    assert shares(run, first_steps(run)[2]) == [21, 43]
    assert not any(lives(pid) for pid in answer["pids"])
