"""`package.module:function`: a data set that the user's own code returns."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convoy.errors import ConvoyError, DataError, UsageError, nearest

FORM = "package.module:function"

_SPEC = re.compile(r"([^\W\d][\w.]*):([^\W\d][\w.]*)")


def is_import(spec: str) -> bool:
    """Whether `spec` has the form `package.module:function`."""
    return _SPEC.fullmatch(spec) is not None


def load_function(spec: str) -> Callable[..., Any]:
    """The function that `spec` names. Raises UsageError.

    The working directory is put on Python's path, as `python -m` does, so that
    a file beside the user's shell is found by an installed command too.
    """
    module_name, _, path = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's code
        raise UsageError(
            f"data set {spec!r}: cannot import {module_name!r}: {type(error).__name__}: {error}; "
            f"expected {FORM}, importable from {here}"
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            close = nearest(name, [known for known in dir(found) if not known.startswith("_")])
            offer = f"; nearest: {', '.join(close)}" if close else ""
            raise UsageError(f"data set {spec!r}: {module_name!r} has no {name!r}{offer}")
        found = getattr(found, name)
    if not callable(found):
        raise UsageError(
            f"data set {spec!r}: it is a {type(found).__name__}; expected a function that returns "
            "(train, test)"
        )
    function: Callable[..., Any] = found
    return function


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
