"""Machines that die while they are measured."""

from __future__ import annotations

from pathlib import Path

from .processes import Harbour


def test_who_died_is_named_and_no_profile_is_written(harbour: Harbour, tmp_path: Path) -> None:
    kind, text = harbour.measure_one_that_dies(tmp_path)["error"]
    assert kind == "CrewError"
    assert "died while it was measured" in text
    assert "no profile is written" in text
    assert not list(tmp_path.iterdir())
