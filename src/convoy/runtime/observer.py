"""What a run tells whoever watches it, as it goes along."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from convoy.runtime.records import StepSummary

Level = Literal["info", "warning"]
_log = logging.getLogger("convoy")


class Observer(Protocol):
    """Takes news of a run; must return at once."""

    def planned(self, plan: Mapping[str, Any]) -> None:
        """What will be done: the content of plan.json."""

    def stepped(self, step: StepSummary, num_steps: int) -> None:
        """A step is complete on all ranks."""

    def evaluated(self, step: int, accuracy: float, loss: float) -> None:
        """The network was judged on the test set after `step`."""

    def say(self, text: str, level: Level = "info") -> None:
        """Something a person may want to know."""


class LogObserver:
    """Passes messages to Python's logging; keeps quiet about the rest."""

    def planned(self, plan: Mapping[str, Any]) -> None:
        """Nothing."""

    def stepped(self, step: StepSummary, num_steps: int) -> None:
        """Nothing."""

    def evaluated(self, step: int, accuracy: float, loss: float) -> None:
        """Log it."""
        _log.info("after step %d: test accuracy %.4f, loss %.4f", step, accuracy, loss)

    def say(self, text: str, level: Level = "info") -> None:
        """Log it."""
        _log.log(logging.WARNING if level == "warning" else logging.INFO, text)
