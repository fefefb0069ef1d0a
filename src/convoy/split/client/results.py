"""What comes of images, one by one and all in all."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from convoy.split.codecs import FloatArray

SWITCHES = 1000
"""Of changes of mind, how many are remembered."""
FINEST_S, STEP = 1e-5, 1.02
"""Latencies are counted in steps of 2%, from 10 microseconds on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """Of one image. There is exactly one for each, in the order of the images."""

    index: int
    name: str
    label: int | None
    """The class with the highest score; None if there is none."""
    class_name: str | None
    scores: FloatArray | None
    """The network's raw logits, float32 [classes]."""
    where: str | None
    """`edge`, or the way it was sent: `pool2/uint8`; None where it was not computed."""
    latency_s: float
    """From the moment the client had the image."""
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """One line of what `convoy split run` prints."""
        found: dict[str, Any] = {"index": self.index, "name": self.name, "label": self.label}
        found |= {"class": self.class_name, "where": self.where}
        if self.scores is not None:
            found["score"] = float(self.scores.max())
        found["latency_ms"] = round(1000 * self.latency_s, 3)
        return found | ({"error": self.error} if self.error else {})


@dataclass(kw_only=True)
class Latencies:
    """How many there were of which length, to within 2%, however many there are."""

    counts: Counter[int] = field(default_factory=Counter)
    total: int = 0

    def add(self, seconds: float) -> None:
        """One more."""
        self.counts[round(math.log(max(seconds, FINEST_S) / FINEST_S, STEP))] += 1
        self.total += 1

    def quantile(self, part: float) -> float:
        """A latency that `part` of them do not exceed; NaN without any."""
        wanted, seen = math.ceil(part * self.total), 0
        for step in sorted(self.counts):
            seen += self.counts[step]
            if seen >= wanted:
                return FINEST_S * STEP**step
        return math.nan


@dataclass(kw_only=True)
class Summary:
    """What a client has done so far."""

    images: int = 0
    errors: int = 0
    by_way: Counter[str] = field(default_factory=Counter)
    """Images, by where they were computed."""
    fallbacks: int = 0
    """Images that came back from a failed way, and that the edge computed."""
    sent_bytes: int = 0
    """Of payloads, including those that were sent in vain."""
    outages: int = 0
    """How often the cloud was given up for a while."""
    probe_bytes: int = 0
    """Sent beside them, to learn what the link carries."""
    choices: int = 0
    """How often a way was chosen that was not the one before."""
    switches: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=SWITCHES))
    """When, in seconds since the beginning, and which; the latest."""
    seconds: float = 0.0
    longest_gap_s: float = 0.0
    """Between two results."""
    latencies: Latencies = field(default_factory=Latencies)

    def note_choice(self, at_s: float, way: str) -> None:
        """A batch is to go this way."""
        if not self.switches or self.switches[-1][1] != way:
            self.choices += 1
            self.switches.append((at_s, way))

    def as_json(self) -> dict[str, Any]:
        """The closing summary of `convoy split run`."""
        return {
            "images": self.images,
            "errors": self.errors,
            "seconds": self.seconds,
            "images_per_s": self.images / self.seconds if self.seconds else None,
            "p50_s": self.latencies.quantile(0.5),
            "p99_s": self.latencies.quantile(0.99),
            "longest_gap_s": self.longest_gap_s,
            "sent_bytes": self.sent_bytes,
            "probe_bytes": self.probe_bytes,
            "computed": dict(self.by_way),
            "fallbacks": self.fallbacks,
            "outages": self.outages,
            "choices": self.choices,
            "switches": [{"at_s": at, "to": way} for at, way in self.switches],
        }
