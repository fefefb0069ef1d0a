"""The same training where torchrun has started the ranks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from .processes import Program, descendants
from .reference import (
    NETWORK,
    SAME,
    STEPS_PER_EPOCH,
    assert_each_sample_once,
    assert_weights,
    effective,
)
from .test_command import LEFT, RESULT
from .test_resume import flags, kept, steps_done

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
OPTIONS = SAME | {"network": NETWORK, "data": "ours:slow", "precision": "fp64", "epochs": 2}
TRAIN = ("-m", "convoy", "train", *flags(OPTIONS), "--out", "run", "--json")
STEPS = 2 * STEPS_PER_EPOCH


def rank(number: int, train: Program) -> psutil.Process:
    """The process that is this rank."""
    children = descendants(train.process.pid)
    return next(c for c in children if c.environ().get("RANK") == str(number))


def test_a_rank_is_killed_and_torchrun_starts_anew(
    program: Callable[..., Program], tmp_path: Path
) -> None:
    """From the beginning as long as there is no checkpoint, and from the newest then."""
    run = tmp_path / "run"
    own = ("--checkpoint-every=12", "--timeout-s=20", "--shares=3,1")
    train = program(
        *(*TORCHRUN, "--max-restarts=2", *TRAIN, *own),
        OMP_NUM_THREADS="1",
        HURRY=str(tmp_path / "hurry"),
    )
    train.until(lambda: steps_done(run) > 2)
    assert not kept(run)
    rank(1, train).kill()
    killed = time.time()
    # a checkpoint is written while the steps after it are done
    train.until(lambda: steps_done(run) > 13 and kept(run))
    assert effective(run)[0][0]["time"] > killed
    rank(0, train).kill()
    (tmp_path / "hurry").touch()
    assert train.wait() == 0, train.stderr
    result = json.loads(train.stdout)
    assert result["resumed_from_step"] >= 12
    assert result == json.loads((run / "result.json").read_text())
    assert result.keys() >= RESULT
    assert {path.name for path in run.iterdir()} >= set(LEFT)
    assert [machine["samples"] for machine in result["machines"]] == [48, 16]
    assert [line["samples"] for line in effective(run)[0]] == [48, 16]
    assert_weights(run, STEPS)
    assert_each_sample_once(run, STEPS)


def test_starting_anew_touches_no_other_run(
    program: Callable[..., Program], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.toml").write_text('network = "lenet"\n')
    (run / "steps.jsonl").write_text("of another run\n")
    again = {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "1"}
    train = program(*TRAIN, **again, MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    assert train.wait() == 2
    assert "--out run is not empty" in train.stderr
    assert {path.name for path in run.iterdir()} == {"run.toml", "steps.jsonl"}
    assert (run / "steps.jsonl").read_text() == "of another run\n"


def test_torchrun_decides_on_ranks(program: Callable[..., Program], tmp_path: Path) -> None:
    places = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    train = program(*TRAIN, "--workers=2", **places)
    assert train.wait() == 2
    assert "torchrun decides how many ranks there are and where" in train.stderr
    assert train.stdout == ""
    assert not (tmp_path / "run").exists()
