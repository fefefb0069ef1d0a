"""What ranks report, as events that can travel to whoever keeps the journal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convoy.runtime.formation import Part

Event = tuple[str, dict[str, Any]]
"""("record" | "layout" | "convolutions" | "evaluation" | "checkpoint", what a Sink was given)."""


class EventSink:
    """A Sink that hands everything on as events."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit

    def record(self, record: dict[str, Any]) -> None:
        """Pass a step's record on."""
        self._emit(("record", record))

    def layout(self, name: str) -> None:
        """Pass the chosen memory format on."""
        self._emit(("layout", {"layout": name}))

    def convolutions(self, rank: int, algorithms: dict[str, str]) -> None:
        """Pass a rank's algorithms on."""
        self._emit(("convolutions", {"rank": rank, "algorithms": algorithms}))

    def evaluation(self, sums: dict[str, Any]) -> None:
        """Pass an evaluation's sums on."""
        self._emit(("evaluation", sums))

    def checkpoint(self, step: int, generation: int, part: Part, *, rank: int, whole: bool) -> None:
        """Pass a part of a checkpoint on."""
        keys = {"step": step, "generation": generation, "rank": rank}
        self._emit(("checkpoint", keys | {"part": part, "whole": whole}))
