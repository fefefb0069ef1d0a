"""A whole machine goes down, and not only the rank on it; another comes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .processes import HERE, Program
from .reference import (
    NETWORK,
    SAME,
    STEPS_PER_EPOCH,
    assert_each_sample_once,
    assert_weights,
    lines,
)


def test_machines_go_and_come(program: Callable[..., Program], tmp_path: Path) -> None:
    crew = SAME | {"network": NETWORK, "precision": "fp64", "epochs": 12}
    replicas = {"network": NETWORK, "strategy": "downpour", "epochs": 40}
    training = program(str(HERE / "nodes.py"), json.dumps([crew, replicas]))
    assert training.wait() == 0, training.stderr
    leaving, coming = json.loads((tmp_path / "answer.json").read_text())
    check_that_training_went_on_without(leaving, tmp_path / "leaving")
    check_that_who_came_got_a_replica(coming, tmp_path / "coming")


def check_that_training_went_on_without(answer: dict[str, Any], run: Path) -> None:
    """The machine "second" went down, and with it a rank of a crew."""
    assert_weights(run, 12 * STEPS_PER_EPOCH)
    assert_each_sample_once(run, 12 * STEPS_PER_EPOCH)
    assert any("on second died in step" in text for text in answer["said"])
    assert re.search("second (itself is gone|could not be started again)", answer["said"][-1])
    assert [machine["name"] for machine in answer["result"]["machines"]] == ["head"]
    assert answer["result"]["reformations"] == 1


def check_that_who_came_got_a_replica(answer: dict[str, Any], run: Path) -> None:
    """The machine "third" came while another trained asynchronously."""
    assert any(text.startswith("third joins at step") for text in answer["said"])
    machines = {machine["name"]: machine["share"] for machine in answer["result"]["machines"]}
    assert machines.keys() == {"head", "third"}
    assert machines["third"] > 0
    done = Counter(line["step"] for line in lines(run))
    assert done == Counter(range(40 * STEPS_PER_EPOCH))
