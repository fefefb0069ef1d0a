"""Three unequal ranks compute what one machine would."""

from __future__ import annotations

from pathlib import Path

import pytest

from .processes import Harbour
from .reference import NETWORK, STEPS_PER_EPOCH, assert_each_sample_once, assert_weights, lines

EXACT = {"workers": 3, "shares": "1,2,5", "precision": "fp64", "memory_format": "contiguous"}


@pytest.mark.timeout(90)
def test_unequal_ranks_train_as_one_machine_does(harbour: Harbour, tmp_path: Path) -> None:
    steps = 3 * STEPS_PER_EPOCH
    options = EXACT | {"epochs": 3, "out": tmp_path / "run"}
    answer = harbour.train(folder=tmp_path, network=NETWORK, data="digits", options=options)
    assert answer["error"] is None
    assert_weights(tmp_path / "run", steps)
    assert_each_sample_once(tmp_path / "run", steps)
    first = [line["samples"] for line in lines(tmp_path / "run") if line["step"] == 0]
    assert first == [8, 16, 40]
    assert answer["result"]["samples_seen"] == 3 * 1437
    assert answer["result"]["reformations"] == 0
