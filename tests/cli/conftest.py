"""How tests run the command line: in this process, as `convoy` would."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from convoy.cli import main


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a command came to."""

    status: int
    out: str
    err: str


Convoy = Callable[..., Ran]


@pytest.fixture
def convoy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Convoy:
    """A function that runs `convoy` with arguments, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")  # so that no word of the help is cut
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Ran:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["convoy", *arguments])
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        written = capsys.readouterr()
        return Ran(status=status, out=written.out, err=written.err)

    return run
