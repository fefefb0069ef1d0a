"""Machines that die while they are measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .processes import Program


def test_who_died_is_named_and_no_profile_is_written(
    program: Callable[..., Program], tmp_path: Path
) -> None:
    asked = ("--network", "chavan:3-8-16-10", "--data", "digits", "--workers", "2")
    going = program("-m", "convoy", "measure", *asked, "--out", "p.json")
    going.until(lambda: "measuring " in going.stdout + going.stderr)
    going.until(lambda: len(going.members()) == 2)
    going.members()[0].kill()
    assert going.wait() == 1
    said = " ".join(going.stderr.split())
    assert "died while it was measured" in said
    assert "no profile is written" in said
    assert not list(tmp_path.glob("p.json*"))
