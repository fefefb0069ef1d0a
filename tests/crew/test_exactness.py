"""Three unequal ranks compute what one machine would."""

from __future__ import annotations

from pathlib import Path

from .processes import Harbour
from .reference import (
    NETWORK,
    SAME,
    STEPS_PER_EPOCH,
    assert_each_sample_once,
    assert_weights,
    lines,
)


def test_unequal_ranks_train_as_one_machine_does(harbour: Harbour, tmp_path: Path) -> None:
    run, options = tmp_path / "run", {"workers": 3, "shares": "1,2,5", "precision": "fp64"}
    options |= {"conv_algorithm": "pipelined"}
    answer = harbour.train(
        folder=tmp_path,
        network=NETWORK,
        data="digits",
        options=SAME | options | {"epochs": 2, "out": run},
    )
    assert answer["error"] is None
    assert_weights(run, 2 * STEPS_PER_EPOCH)
    assert_each_sample_once(run, 2 * STEPS_PER_EPOCH)
    assert [line["samples"] for line in lines(run) if line["step"] == 0] == [8, 16, 40]
    assert answer["result"]["samples_seen"] == 2 * 1437
    assert answer["result"]["reformations"] == 0
    assert answer["result"]["convolutions"] == {str(n): {"conv1": "pipelined"} for n in range(3)}
