"""Asynchronous training over parameter servers, with real processes that come and go."""

from __future__ import annotations

import json
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from .ours import normed
from .processes import Harbour
from .reference import NETWORK, SAME, STEPS_PER_EPOCH, TRAIN_SAMPLES, assert_weights, lines

SERVED = SAME | {"strategy": "downpour", "optimizer": "sgd"}
ADAPTING = {"optimizer": "adagrad", "lr": 0.02}


def train(harbour: Harbour, folder: Path, **job: Any) -> dict[str, Any]:
    """Train `NETWORK` on the digits into `folder`/run; the job's options over those of `SERVED`."""
    given = {"network": NETWORK, "data": "digits"} | job
    given["options"] = SERVED | {"out": folder / "run"} | job["options"]
    answer = harbour.train(folder=folder, **given)
    if "deed" not in job:
        assert not [text for _, text in answer["said"] if "lost" in text]
    return answer


def steps_done(run: Path) -> Counter[int]:
    """How often each step was done."""
    return Counter(line["step"] for line in lines(run))


def test_one_replica_is_sequential_training(harbour: Harbour, tmp_path: Path) -> None:
    options = {"workers": 1, "shards": 3, "precision": "fp64", "epochs": 1}
    answer = train(harbour, tmp_path, options=options)
    assert answer["error"] is None
    assert_weights(tmp_path / "run", STEPS_PER_EPOCH, atol=1e-12)
    servers = answer["result"]["servers"]
    assert (servers["shards"], servers["updates"]) == (3, STEPS_PER_EPOCH)
    assert servers["staleness"]["histogram"] == {"0": STEPS_PER_EPOCH}
    assert answer["result"]["samples_seen"] == TRAIN_SAMPLES


def test_a_replica_of_two_devices_is_sequential_training(harbour: Harbour, tmp_path: Path) -> None:
    """With batch normalisation, whose statistics each device keeps of its own layers."""
    run = tmp_path / "run"
    options = {"workers": 2, "replica_devices": 2, "precision": "fp64", "epochs": 2}
    options |= {"shares": (1.0, 1.0)}  # or machines would be measured
    answer = train(harbour, tmp_path, network="ours:normed", options=options)
    assert answer["error"] is None
    assert_weights(run, 2 * STEPS_PER_EPOCH, atol=1e-12, build=normed)
    plan = json.loads((run / "plan.json").read_text())
    assert plan["settled"]["replicas"] == 1
    rows = lines(run)
    assert Counter(row["step"] for row in rows) == dict.fromkeys(range(2 * STEPS_PER_EPOCH), 2)
    assert [row["samples"] for row in rows if row["position"]] == [0] * 2 * STEPS_PER_EPOCH
    # each pushes to, and fetches from, the shard of its own layers
    own = [sum(row["received_from"].values()) for row in rows if row["step"] == 0]
    assert sum(own) == 8 * plan["parameters"]
    assert min(own) > 0
    result = answer["result"]
    assert result["samples_seen"] == 2 * TRAIN_SAMPLES
    assert sum(machine["share"] for machine in result["machines"]) == pytest.approx(1)
    judged = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [row["step"] for row in judged] == [STEPS_PER_EPOCH - 1, 2 * STEPS_PER_EPOCH - 1]


def test_a_device_of_a_replica_dies(harbour: Harbour, tmp_path: Path) -> None:
    """The other ends as well, and both begin again; the other replica goes on meanwhile."""
    run = tmp_path / "run"
    answer = train(
        harbour,
        tmp_path,
        data="slow",
        options={"workers": 4, "shares": (1.0,) * 4, "replica_devices": 2, "epochs": 12}
        | {"snapshot_s": 1}
        | ADAPTING,
        **{"deed": "kill", "at": 20, "to": [64], "hurry_after": "joins"},
    )
    assert answer["error"] is None
    assert set(steps_done(run)) == set(range(12 * STEPS_PER_EPOCH))
    result = answer["result"]
    (loss,) = result["recoveries"]
    assert loss["lost"] == [platform.node()]
    assert any("lost its replica, and" in text for _, text in answer["said"])
    replicas = {row["replica"] for row in lines(run)}
    assert replicas == {0, 1, 2}
    assert result["test_accuracy"] > 0.8


def test_without_staleness_replicas_are_one_machine(harbour: Harbour, tmp_path: Path) -> None:
    """Two batches of 32 that are one update are a batch of 64."""
    options = {"workers": 2, "batch_size": 32, "max_staleness": 0, "shards": 2}
    answer = train(harbour, tmp_path, options=options | {"precision": "fp64", "steps": 44})
    assert answer["error"] is None
    assert_weights(tmp_path / "run", 22, atol=1e-12)
    servers = answer["result"]["servers"]
    assert servers["updates"] == 22
    assert servers["staleness"]["histogram"] == {"0": 44}


def test_every_sample_is_used_once_at_each_replica_s_pace(harbour: Harbour, tmp_path: Path) -> None:
    run = tmp_path / "run"
    answer = train(harbour, tmp_path, options={"workers": 2, "epochs": 3} | ADAPTING)
    assert answer["error"] is None
    assert steps_done(run) == Counter(range(3 * STEPS_PER_EPOCH))
    result, servers = answer["result"], answer["result"]["servers"]
    assert result["samples_seen"] == 3 * TRAIN_SAMPLES
    assert servers["samples_repeated"] == 0
    assert sum(servers["staleness"]["histogram"].values()) == 3 * STEPS_PER_EPOCH
    assert servers["updates"] == 3 * STEPS_PER_EPOCH
    assert result["test_accuracy"] > 0.5
    assert sum(machine["share"] for machine in result["machines"]) == 1
    plan = json.loads((run / "plan.json").read_text())
    size = 4 * plan["parameters"]
    for line in lines(run):
        assert line["sent_to"] == {"0": size}
        assert line["received_from"] == {"0": size}
        assert line["sent_bytes"] == 2 * size
        assert line["staleness"] >= 0
        assert line["wall_s"] - line["compute_s"] - line["wait_s"] - line["comm_s"] + 1e-6 >= 0


def test_a_few_of_every_other_step_s_gradients(harbour: Harbour, tmp_path: Path) -> None:
    """After some steps that one replica does alone."""
    run, warm = tmp_path / "run", 12
    options = {"workers": 2, "epochs": 4, "push_every": 2, "fetch_every": 2, "warm_start": warm}
    answer = train(harbour, tmp_path, options=options | {"wire": "topk:0.25"} | ADAPTING)
    assert answer["error"] is None
    assert steps_done(run) == Counter(range(4 * STEPS_PER_EPOCH))
    rows = lines(run)
    assert len({row["replica"] for row in rows if row["step"] < warm}) == 1
    assert len({row["replica"] for row in rows}) == 2
    result, servers = answer["result"], answer["result"]["servers"]
    pushes = sum(servers["staleness"]["histogram"].values())
    # every other step's, but where a lease ends with an odd one
    assert 2 * STEPS_PER_EPOCH <= pushes == servers["updates"] < 3 * STEPS_PER_EPOCH
    plan = json.loads((run / "plan.json").read_text())
    quarter = -(-plan["parameters"] // 4)
    for row in rows:
        pushed = row["staleness"] is not None
        assert row["sent_to"] == ({"0": 8 * quarter} if pushed else {})
        assert row["received_from"] == ({"0": 4 * plan["parameters"]} if pushed else {})
    assert result["test_accuracy"] > 0.5


def test_a_shard_dies_and_then_a_replica_hangs(harbour: Harbour, tmp_path: Path) -> None:
    """The shard is there again from its snapshot; what the replica had leased others do."""
    run = tmp_path / "run"
    answer = train(
        harbour,
        tmp_path,
        data="slow",
        options={"workers": 2, "shards": 2, "epochs": 40, "snapshot_s": 1, "timeout_s": 1}
        | ADAPTING,
        **{"deed": "kill shard", "at": 30, "hurry_after": "joins"},
        **{"then": [64], "then_after": "there again", "then_hangs": True},
    )
    assert answer["error"] is None
    assert set(steps_done(run)) == set(range(40 * STEPS_PER_EPOCH))
    result, servers = answer["result"], answer["result"]["servers"]
    (restoration,) = servers["restorations"]
    assert 0 <= servers["lost_updates"] == restoration["lost_updates"] <= 40
    assert result["reformations"] == 1
    assert result["recoveries"][0]["lost"] == [platform.node()]
    assert any("has not answered for 11 s" in text for _, text in answer["said"])
    assert any("joins" in text for _, text in answer["said"])
    # a step that both the dead and its heir reported was used twice
    again = sum(count - 1 for count in steps_done(run).values()) * 64
    assert again >= servers["samples_repeated"] > again - 64
    assert result["samples_seen"] == 40 * TRAIN_SAMPLES + servers["samples_repeated"]
    assert result["test_accuracy"] > 0.8


def test_what_was_interrupted_goes_on_exactly(harbour: Harbour, tmp_path: Path) -> None:
    run, options = tmp_path / "run", {"workers": 1, "precision": "fp64", "epochs": 2}
    answer = train(
        harbour, tmp_path, data="slow", options=options, **{"deed": "interrupt", "at": 30}
    )
    assert answer["error"][0] == "KeyboardInterrupt"
    answer = harbour.train(folder=tmp_path, data="slow", options={"resume": run, "workers": 1})
    assert answer["error"] is None
    assert answer["result"]["resumed_from_step"] > 30
    assert answer["result"]["samples_seen"] == 2 * TRAIN_SAMPLES
    assert_weights(run, 2 * STEPS_PER_EPOCH, atol=1e-12)
    assert steps_done(run) == Counter(range(2 * STEPS_PER_EPOCH))


def test_without_a_coordinator_nobody_knows_what_to_do(harbour: Harbour, tmp_path: Path) -> None:
    """It is on the driver's machine: what ends it may well end the driver next."""
    answer = train(
        harbour,
        tmp_path,
        data="slow",
        options={"workers": 1, "epochs": 2, "snapshot_s": 1} | ADAPTING,
        **{"deed": "kill coordinator", "at": 30},
    )
    kind, text = answer["error"]
    assert kind == "CrewError"
    assert text.startswith("the coordinator, a process on this machine that leases steps")
    assert f"--resume {tmp_path / 'run'}" in text


def test_a_rate_that_is_too_high_is_named(harbour: Harbour, tmp_path: Path) -> None:
    options = {"workers": 2, "epochs": 20, "lr": 1e6, "momentum": 0.0}
    answer = train(harbour, tmp_path, options=options)
    kind, text = answer["error"]
    assert kind == "DivergedError"
    assert "Try a lower --lr" in text
    assert "snapshot" in text
