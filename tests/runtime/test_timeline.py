from __future__ import annotations

import subprocess
import sys
import time

import pytest

from convoy.runtime import timeline
from convoy.runtime.timeline import Timeline

MARK_AFTER = """
import time
from convoy.runtime.timeline import Timeline
time.sleep(0.5)
found = Timeline()
found.mark("awake")
print(found.phases()["awake"])
"""


def test_phases_lie_between_marks_and_the_first_time_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter([2.0, 7.5, 8.0, 50.0])
    monkeypatch.setattr(timeline, "_age", lambda: next(now))
    found = Timeline()
    assert found.phases() == {}
    for name in ("imports", "data", "first step", "first step"):
        found.mark(name)
    assert found.phases() == {"imports": 2.0, "data": 5.5, "first step": 0.5}


def test_the_first_phase_begins_with_the_process() -> None:
    begun = time.monotonic()
    told = subprocess.run([sys.executable, "-c", MARK_AFTER], check=True, capture_output=True)
    assert 0.5 <= float(told.stdout) <= time.monotonic() - begun + 0.02
