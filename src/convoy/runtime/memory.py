"""The process's memory: kept from one step to the next, and left alone by the collector."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
KEPT_BYTES = 2**31 - 1  # mallopt takes an int
GROWTH_BYTES = 64 * 1024**2


def keep_freed_memory() -> bool:
    """Have this process keep what it frees; whether the C library can do that.

    glibc gives large freed blocks back to the system, and takes them anew, page fault by page
    fault, at the next step: thousands of faults per step for activations of some megabytes, and
    twice as many in a thread that is not the main one, as an actor's is not.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # not glibc
        return False
    wanted = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, KEPT_BYTES), (M_TOP_PAD, GROWTH_BYTES))
    accepted = [mallopt(option, value) == 1 for option, value in wanted]
    return all(accepted)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Within it what is made is made to last, as by imports; the collector skips it for ever.

    Importing torch makes half a million such objects, and the collector would go through them
    again and again meanwhile: a fifth of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
