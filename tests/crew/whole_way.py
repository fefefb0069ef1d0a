"""Measures, plans, trains and compares in one Ray session, in a hurry."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import convoy
from convoy.runtime import comparing, link_timer, ray_session, survey

NETWORK, DATA = "chavan:3-8-16-10", "digits"
COMPARED = ("single", "data")
OPTIONS: dict[str, Any] = {"workers": 2, "batch_size": 32, "memory_format": "contiguous"}


class Watch:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def planned(self, plan: Any) -> None:
        """Nothing."""

    def stepped(self, step: Any, num_steps: int) -> None:
        """Nothing."""

    def evaluated(self, step: int, accuracy: float, loss: float) -> None:
        """Nothing."""

    def say(self, text: str, level: str = "info") -> None:
        """Note it."""
        self.said.append(text)


def hurry() -> None:
    """What is measured here is thrown away: moments will do."""
    survey.STEPS_S = survey.ALONE_S = survey.LAYERS_S = survey.FILTERS_S = 0.2
    survey.STATE_S = 0.1
    survey.ALONE_ROUNDS, survey.ALL_REDUCE_S = 1, 0.05
    survey.ALL_REDUCE_BYTES = (8, 1 << 14)
    comparing.RUN_S = 0.0
    link_timer.LINK_S = 0.01


if __name__ == "__main__":
    hurry()
    watch = Watch()
    with ray_session.session():
        ray_session.start_local(4, verbose=False)
        profile = convoy.measure(NETWORK, data=DATA, out="profile.json", observer=watch, **OPTIONS)
        report = convoy.plan(NETWORK, data=DATA, profile="profile.json", **OPTIONS)
        run = {"data": DATA, "steps": 8, "lr": 0.01} | OPTIONS
        result = convoy.train(NETWORK, out="run", observer=watch, **run)
        comparison = convoy.compare(
            NETWORK,
            **{"data": DATA, "repeats": 1, "equal": True, "each_single": True, "out": "compared"},
            strategies=COMPARED,
            **{"target_accuracy": 0.01, "steps": 16, "lr": 0.01, "observer": watch, **OPTIONS},
        )
    assert result is not None
    answer = {
        "devices": len(profile.devices),
        "report": report.to_dict(),
        "results": [result.to_dict()],
        "comparison": comparison.to_dict(),
        "said": watch.said,
        "cached": len(list(Path(os.environ["XDG_CACHE_HOME"]).glob("convoy/profiles/*.json"))),
    }
    Path("answer.json").write_text(json.dumps(answer, default=str))
