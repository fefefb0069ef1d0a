"""What a client can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from convoy.errors import UsageError
from convoy.split.costs import DEADLINE_S, OBJECTIVES

Objective = Literal["latency", "throughput", "bytes", "privacy"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How images are to be computed. Raises UsageError where that cannot be."""

    objective: Objective = "throughput"
    accuracy_within: float = 1.0
    """Points of the whole network's accuracy that a way may lose."""
    rate: float = 0.0
    """Images per second that the way is to keep up with, as long as any does."""
    batch_size: int = 1
    linger_s: float = 0.05
    """How long an incomplete batch waits for more images."""
    deadline_s: float = DEADLINE_S
    """How long a batch may be away; then the edge computes it."""
    connect_s: float = 2.0
    """How long the server is waited for at the start; then the edge begins alone."""
    way: str | None = None
    """The only way to be used, `pool2/uint8` say; the edge still computes what fails."""
    fallback: bool = True
    """Whether the edge computes what the cloud does not: otherwise such images fail."""
    threads: int = 1
    ca: Path | None = None
    """Certificates that the server's is to be signed by; the system's without it."""
    cert: Path | None = None
    """The client's own, where the server asks for one; with its key."""
    key: Path | None = None
    token: str | None = None
    insecure: bool = False
    """Whether a token may travel in plain text to another machine."""

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise UsageError(
                f"objective {self.objective!r}: expected one of {', '.join(OBJECTIVES)}"
            )
        if not 1 <= self.batch_size <= 4096:
            raise UsageError(f"batch size {self.batch_size}: expected 1 to 4096")
        for what, seconds in (("deadline", self.deadline_s), ("patience", self.connect_s)):
            if not (math.isfinite(seconds) and seconds > 0):
                raise UsageError(f"{what} {seconds:g} s: expected more than 0")
        if not 0 <= self.rate < math.inf:
            raise UsageError(f"rate {self.rate:g}: expected images per second, 0 or more")
        if not self.accuracy_within >= 0:
            raise UsageError(f"accuracy within {self.accuracy_within:g} points: expected 0 or more")
        if not 0 <= self.linger_s < math.inf:
            raise UsageError(f"an incomplete batch waits {self.linger_s:g} s: expected 0 or more")
        if self.threads < 1:
            raise UsageError(f"{self.threads} threads: expected 1 or more")
        if (self.cert is None) != (self.key is None):
            raise UsageError("a client's certificate and its key belong together: give both")
