"""How all of this folder's loops are compiled, and what they call an array."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit

Array = np.ndarray[Any, Any]
Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(function: Loop) -> Loop:
    """By Numba when it is first called with such types, and kept; it holds no lock when it runs.

    Where nothing can be kept it is compiled by every process. Numba asks of a function's own file
    whether it has changed; here it is asked of all of them, since one calls another's.
    """
    try:
        made = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder that can be written to
        return cast(Loop, njit(nogil=True)(function))
    kept: Any = getattr(getattr(made, "_cache", None), "_cache_file", None)
    if hasattr(kept, "_source_stamp"):
        kept._source_stamp = _digest()
    return cast(Loop, made)


@cache
def _digest() -> str:
    """Of all sources that are compiled, or say how."""
    here = Path(__file__).parent
    found = hashlib.sha256()
    for path in sorted([*here.glob("*.py"), here.parent / "geometry.py"]):
        found.update(path.read_bytes())
    return found.hexdigest()
