from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, threading
import numpy
from convoy.runtime.memory import keep_freed_memory

def work():
    if "keep" in sys.argv:
        assert keep_freed_memory()
    for round in range(20):
        if round == 10:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [numpy.ones(1_000_000) for _ in range(4)]
        del blocks
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can")
def test_freed_memory_is_used_again() -> None:
    run = [sys.executable, "-c", FAULTS]
    without, kept = (
        int(subprocess.run(run + more, check=True, capture_output=True, text=True).stdout)
        for more in ([], ["keep"])
    )
    assert without > 1000  # 32 MB are 7813 pages a round
    assert kept < 100
