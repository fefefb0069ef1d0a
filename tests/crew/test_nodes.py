"""A whole machine goes down, and not only the rank on it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from .processes import HERE, Program
from .reference import NETWORK, SAME, STEPS_PER_EPOCH, assert_each_sample_once, assert_weights


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
