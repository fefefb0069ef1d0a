from __future__ import annotations

from types import SimpleNamespace

import pytest

from convoy.runtime import timeline
from convoy.runtime.timeline import Timeline


def test_phases_lie_between_marks_and_the_first_time_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter([102.0, 107.5, 108.0, 150.0])
    process = SimpleNamespace(create_time=lambda: 100.0)
    monkeypatch.setattr(timeline, "psutil", SimpleNamespace(Process=lambda: process))
    monkeypatch.setattr(timeline, "time", SimpleNamespace(time=lambda: next(now)))
    found = Timeline()
    assert found.phases() == {}
    for name in ("imports", "data", "first step", "first step"):
        found.mark(name)
    assert found.phases() == {"imports": 2.0, "data": 5.5, "first step": 0.5}
