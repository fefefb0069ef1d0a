"""How all of this folder's loops are compiled, and what they call an array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit

Array = np.ndarray[Any, Any]
Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(function: Loop) -> Loop:
    """By Numba when it is first called with such types, and kept; it holds no lock when it runs.

    Where nothing can be kept it is compiled by every process. Numba looks at a function's own file
    alone: who changes `tile.py` or a constant removes `__pycache__`, or sets NUMBA_CACHE_DIR anew.
    """
    try:
        return cast(Loop, njit(nogil=True, cache=True)(function))
    except RuntimeError:  # no folder that can be written to
        return cast(Loop, njit(nogil=True)(function))
