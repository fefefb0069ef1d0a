"""`package.module:function`: the user's own code, by the name it can be imported under."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convoy.errors import UsageError, nearest

FORM = "package.module:function"

_FORM = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*(?:\.[^\W\d]\w*)*)")


def is_import(name: str) -> bool:
    """Whether `name` has the form `package.module:function`."""
    return _FORM.fullmatch(name) is not None


def load_function(name: str, *, kind: str, returns: str) -> Callable[..., Any]:
    """The function that `name` stands for; `kind` and `returns` are for errors.

    Raises:
        UsageError: there is no such module or function, or importing it fails.
    """
    subject = f"{kind} {name!r}"
    module_name, _, path = name.partition(":")
    found = _module(subject, module_name)
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            close = nearest(attribute, [n for n in dir(found) if not n.startswith("_")])
            offer = f"; nearest: {', '.join(close)}" if close else ""
            raise UsageError(
                f"{subject}: no such function: {module_name!r} has no {attribute!r}{offer}"
            )
        found = getattr(found, attribute)
    if not callable(found):
        raise UsageError(
            f"{subject}: it is {type_of(found)}; expected a function that returns {returns}"
        )
    function: Callable[..., Any] = found
    return function


def type_of(value: object) -> str:
    """What `value` is, in words."""
    return "nothing (None)" if value is None else f"a value of type {type(value).__name__}"


def _module(subject: str, name: str) -> Any:
    """Import `name`; the working directory is on the path, as `python -m` has it, so that a
    file beside the user's shell is found by an installed command too."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except Exception as error:  # importing runs the user's code
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and (name == missing or name.startswith(f"{missing}.")):
            raise UsageError(
                f"{subject}: module {missing!r} not found; expected {FORM}, importable from {here}"
            ) from error
        raise UsageError(
            f"{subject}: importing {name!r} failed: {type(error).__name__}: {error}"
        ) from error
