"""Measures, plans, trains and compares in a Ray that is there, in a hurry; for harbour.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import convoy
from convoy.runtime import comparing, link_timer, survey

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


@contextmanager
def hurry(cache: Path) -> Iterator[None]:
    """What is measured here is thrown away: moments will do."""
    moments = dict.fromkeys(("STEPS_S", "ALONE_S", "LAYERS_S", "FILTERS_S"), 0.2)
    rough = moments | {"STATE_S": 0.1, "ALL_REDUCE_S": 0.05}
    with ExitStack() as stack:
        for patch in (
            mock.patch.multiple(survey, **rough, ALONE_ROUNDS=1, ALL_REDUCE_BYTES=(8, 1 << 14)),
            mock.patch.object(comparing, "RUN_S", 0.0),
            mock.patch.object(link_timer, "LINK_S", 0.01),
            mock.patch.dict(os.environ, XDG_CACHE_HOME=str(cache)),
        ):
            stack.enter_context(patch)
        yield


def whole_way(folder: Path) -> dict[str, Any]:
    """What comes of it, in `folder` and in short."""
    watch, cache, file = Watch(), folder / "cache", folder / "profile.json"
    with hurry(cache):
        profile = convoy.measure(NETWORK, data=DATA, out=file, observer=watch, **OPTIONS)
        report = convoy.plan(NETWORK, data=DATA, profile=file, **OPTIONS)
        run = {"data": DATA, "steps": 8, "lr": 0.01} | OPTIONS
        result = convoy.train(NETWORK, out=folder / "run", observer=watch, **run)
        comparison = convoy.compare(
            NETWORK,
            **{"data": DATA, "repeats": 1, "equal": True, "each_single": True},
            **{"strategies": COMPARED, "out": folder / "compared"},
            **{"target_accuracy": 0.01, "steps": 16, "lr": 0.01, "observer": watch, **OPTIONS},
        )
    assert result is not None
    return {
        "devices": len(profile.devices),
        "report": report.to_dict(),
        "result": result.to_dict(),
        "comparison": comparison.to_dict(),
        "said": watch.said,
        "cached": len(list(cache.glob("convoy/profiles/*.json"))),
    }
