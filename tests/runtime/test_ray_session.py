from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from convoy.runtime import ray_session


def test_a_raylet_that_has_died_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        monkeypatch.setattr(ray_session, "_raylets", [psutil.Process(process.pid)])
        assert not ray_session.is_lost()
        process.kill()
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            pass
        assert ray_session.is_lost()
    assert ray_session.is_lost()


def test_where_none_was_started_none_is_lost() -> None:
    assert not ray_session.is_lost()
