"""Runs that were stopped, or lost every rank, go on from their newest checkpoint."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .processes import Harbour, Program
from .reference import (
    NETWORK,
    SAME,
    STEPS_PER_EPOCH,
    assert_each_sample_once,
    assert_same_bits,
    assert_weights,
    effective,
)

STOPPED = re.compile(r"stopped before step (\d+); the checkpoint of step (\d+) is kept")
STEPS = 2 * STEPS_PER_EPOCH


ALONE = {"workers": 1, "shares": "1"}


def flags(options: dict[str, Any]) -> list[str]:
    """Options of `convoy.train` as the command line has them."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]


def steps_done(run: Path) -> int:
    """How many steps the records have."""
    return len(effective(run)) if (run / "steps.jsonl").is_file() else 0


def kept(run: Path) -> list[int]:
    """The steps that there are checkpoints of."""
    found = (run / "checkpoints").glob("step-*")
    return sorted(int(path.name.removeprefix("step-")) for path in found)


def test_every_rank_is_killed(harbour: Harbour, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = SAME | {"precision": "fp64", "epochs": 2, "shares": "3,5", "checkpoint_every": 4}
    killed = harbour.train(
        folder=tmp_path,
        network=NETWORK,
        data="slow",
        options=options | {"workers": 2, "out": run},
        **{"deed": "kill", "at": 13, "to": [24, 40]},
    )
    kind, text = killed["error"]
    assert kind == "CrewError"
    assert text.startswith("every rank is lost; the last step done is ")
    assert f"--resume {run}" in text
    assert kept(run)[-1] >= 8  # a checkpoint is written while the steps after it are done
    assert not (run / "result.json").exists()
    before = kept(run)[-1]

    (tmp_path / "hurry").touch()
    resumed = harbour.train(folder=tmp_path, data="slow", options={"resume": run} | ALONE)
    assert resumed["error"] is None
    result = resumed["result"]
    assert (result["samples_seen"], result["resumed_from_step"]) == (2 * 1437, before)
    assert_weights(run, STEPS)
    assert_each_sample_once(run, STEPS)


NORMED = SAME | {"network": "ours:normed", "workers": 2, "shares": "3,5", "epochs": 2}
"""With batch normalisation, in float32."""


def test_ctrl_c_and_on_with_the_same_bits(
    program: Callable[..., Program], harbour: Harbour, tmp_path: Path
) -> None:
    options = NORMED | {"data": "ours:slow", "checkpoint_every": 7, "conv_algorithm": "pipelined"}
    whole, run = tmp_path / "whole", tmp_path / "run"
    undisturbed = harbour.command("train", *flags(options), "--out", str(whole))
    assert undisturbed["code"] == 0, undisturbed["stderr"]

    train = program(
        *("-m", "convoy", "train", *flags(options), "--out", "run"), HURRY=str(tmp_path / "hurry")
    )
    train.until(lambda: steps_done(run) >= 8)
    os.killpg(train.process.pid, signal.SIGINT)  # as a terminal does: to all of the group
    assert train.wait() == 130, train.stderr
    found = STOPPED.search(train.stdout)
    assert found, train.stdout
    assert "Go on with: convoy train --resume run" in train.stdout
    stop = int(found[1])
    assert 8 <= stop < STEPS
    assert (int(found[2]), kept(run)[-1]) == (stop, stop)
    assert steps_done(run) == stop

    resumed = harbour.command("train", "--resume", str(run), "--json")
    assert resumed["code"] == 0, resumed["stderr"]
    assert f"going on from step {stop}" in resumed["stderr"]
    assert_same_bits(run, whole)
    assert_each_sample_once(run, STEPS)


def test_stopped_while_ranks_differ(harbour: Harbour, tmp_path: Path) -> None:
    options = NORMED | {"strategy": "averaging", "average_every": 20}
    options |= {"workers": 2, "shares": "1,2", "checkpoint_every": 7}
    job: dict[str, Any] = {"folder": tmp_path, "network": "ours:normed", "data": "crawling"}
    del options["network"]
    whole, run, damaged = (tmp_path / name for name in ("whole", "run", "damaged"))
    hurry = tmp_path / "hurry"
    hurry.touch()
    assert harbour.train(**job, options=options | {"out": whole})["error"] is None

    hurry.unlink()
    stopped = harbour.train(**job, options=options | {"out": run}, deed="interrupt", at=21)
    assert stopped["error"][0] == "KeyboardInterrupt"
    stop = kept(run)[-1]
    assert 21 < stop < 40
    states = list((run / "checkpoints" / f"step-{stop}").glob("state-*.safetensors"))
    assert len({path.read_bytes() for path in states}) == 2
    shutil.copytree(run, damaged)

    hurry.touch()
    resumed = harbour.train(**job, options={"resume": run})
    assert resumed["error"] is None
    assert resumed["result"]["resumed_from_step"] == stop
    assert_same_bits(run, whole)
    assert_each_sample_once(run, STEPS)

    newest = damaged / "checkpoints" / f"step-{stop}" / "state-1.safetensors"
    os.truncate(newest, newest.stat().st_size // 2)
    before = kept(damaged)[-2]
    resumed = harbour.train(**job, options={"resume": damaged})
    assert resumed["error"] is None
    # where the machine is busy, a rank may be warned about as slow besides
    warnings = [text for level, text in resumed["said"] if level == "warning"]
    warnings = [text for text in warnings if "--shares" not in text]
    assert len(warnings) == 1
    assert f"{newest} (" in warnings[0]
    assert "is truncated or altered: its checksum does not match; taking the one" in warnings[0]
    assert resumed["result"]["resumed_from_step"] == before
    assert_same_bits(damaged, whole)
    assert_each_sample_once(damaged, STEPS)
