"""What every check shares: its settings, its verdict, and that it cannot fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "warning", "problem"]
"""It works; it works, but slowly or not for long; it will not work."""


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """What to examine besides this machine."""

    cluster: str | None = None
    """A cluster file, `ray` (the Ray cluster this machine is in), `ray://HOST`, or None."""
    address: str | None = None
    """With a cluster file or `ray`: Ray's own HOST:PORT; None finds it as Ray does."""
    run_folder: Path = Path("runs")
    """Where runs are to be kept; need not exist yet."""
    timeout_s: float = 20.0
    """The longest that one wait, for processes to meet or for a machine to answer, may take."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """The verdict on one thing. `dataclasses.asdict` of it is ready for JSON."""

    name: str
    """What was examined."""
    status: Status
    """How it is."""
    detail: str
    """What was found, with figures."""
    advice: str = ""
    """What to do; empty if, and only if, `status` is ok."""

    def __post_init__(self) -> None:
        assert (self.status == "ok") == (self.advice == ""), f"{self.name}: {self.status}"


def guarded(
    name: str, check: Callable[[DoctorOptions], Check | list[Check]], options: DoctorOptions
) -> list[Check]:
    """What `check` returns; if it raises, one problem that says so."""
    try:
        verdict = check(options)
    except Exception as error:  # whatever it is: the checks after this one matter too
        return [
            Check(
                name=name,
                status="problem",
                detail=f"the check itself failed: {type(error).__name__}: {one_line(error)}",
                advice="Mend what the message names if you can; otherwise report it as a bug.",
            )
        ]
    return verdict if isinstance(verdict, list) else [verdict]


def one_line(error: BaseException | str) -> str:
    """The first line of a message that says something, at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [repr(error)])[0][:300]


def show_size(num_bytes: float) -> str:
    """Bytes in a unit people read, in powers of 1000: '64.0 MB'."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} bytes"
