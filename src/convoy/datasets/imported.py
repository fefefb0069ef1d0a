"""`package.module:function`: a data set that the user's own code returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convoy.errors import ConvoyError, DataError


def call(function: Callable[..., Any], data_dir: Path, name: str) -> Any:
    """What `function` returns; it is given `data_dir` if it has a parameter of that name."""
    try:
        wants_dir = "data_dir" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        wants_dir = False
    try:
        return function(data_dir=data_dir) if wants_dir else function()
    except ConvoyError:
        raise
    except Exception as error:  # the user's own code
        raise DataError(
            f"data set {name!r}: the function failed: {type(error).__name__}: {error}"
        ) from error
