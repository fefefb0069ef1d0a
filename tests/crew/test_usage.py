"""What cannot be done as it was asked ends with status 2 and advice, and leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from .processes import Harbour
from .reference import NETWORK


@pytest.mark.parametrize(
    ("flags", "advice"),
    [
        (
            ("--batch-size", "1", "--workers", "4"),
            "a batch of 1 cannot be shared by 4 workers: each needs at least one sample per "
            "step. Use --batch-size 4 or more, or --workers 1",
        ),
        (("--workers", "3", "--shares", "2,1"), "--shares gives 2 shares for 3 workers"),
        (("--workers", "2", "--shares", "2,0"), "--shares 2,0: expected numbers above 0"),
        (("--workers", "2", "--cluster", "ray"), "give one of them"),
    ],
)
def test_wrong_usage(harbour: Harbour, tmp_path: Path, flags: tuple[str, ...], advice: str) -> None:
    run = tmp_path / "run"
    done = harbour.command(
        *("train", "--network", NETWORK, "--strategy", "data", "--out", str(run), *flags)
    )
    assert done["code"] == 2
    assert advice in done["stderr"]
    assert not run.exists()
