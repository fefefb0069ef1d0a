"""A whole machine goes down, and not only the rank on it; another comes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from .processes import HERE, Program
from .reference import (
    NETWORK,
    SAME,
    STEPS_PER_EPOCH,
    assert_each_sample_once,
    assert_weights,
    lines,
)


def test_training_goes_on_without_the_machine(
    program: Callable[..., Program], tmp_path: Path
) -> None:
    options = SAME | {"network": NETWORK, "precision": "fp64", "epochs": 12, "out": "run"}
    train = program(str(HERE / "two_nodes.py"), json.dumps(options))
    assert train.wait() == 0, train.stderr
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert_weights(tmp_path / "run", 12 * STEPS_PER_EPOCH)
    assert_each_sample_once(tmp_path / "run", 12 * STEPS_PER_EPOCH)
    assert any("on second died in step" in text for text in answer["said"])
    assert re.search("second (itself is gone|could not be started again)", answer["said"][-1])
    assert [machine["name"] for machine in answer["result"]["machines"]] == ["head"]
    assert answer["result"]["reformations"] == 1


def test_a_machine_that_comes_gets_a_replica(
    program: Callable[..., Program], tmp_path: Path
) -> None:
    options = {"network": NETWORK, "strategy": "downpour", "epochs": 40, "out": "run"}
    train = program(str(HERE / "joining_node.py"), json.dumps(options))
    assert train.wait() == 0, train.stderr
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert any(text.startswith("second joins at step") for text in answer["said"])
    machines = {machine["name"]: machine["share"] for machine in answer["result"]["machines"]}
    assert machines.keys() == {"head", "second"}
    assert machines["second"] > 0
    done = Counter(line["step"] for line in lines(tmp_path / "run"))
    assert done == Counter(range(40 * STEPS_PER_EPOCH))
