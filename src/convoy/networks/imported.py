"""A network that the user's own code returns: `package.module:function`, or the function."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from convoy.errors import ConvoyError, UsageError, nearest
from convoy.networks.spec import Spec

FORM = "package.module:function"

_FORM = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*(?:\.[^\W\d]\w*)*)")


def is_import(name: str) -> bool:
    """Whether `name` has the form `package.module:function`."""
    return _FORM.fullmatch(name) is not None


def imported(spec: Spec) -> nn.Module:
    """What the function returns. It is given `input_shape` and `num_classes` if it takes them.

    Raises:
        UsageError: there is no such module or function, it needs other arguments, it fails, or
            it returns something else than a module.
    """
    return made_by(_function(spec), spec)


def made_by(function: Callable[..., Any], spec: Spec) -> nn.Module:
    """What `function` returns for `spec`, which names it in errors; raises as `imported` does."""
    arguments = _arguments(spec, function)
    try:
        network = function(**arguments)
    except ConvoyError:
        raise
    except Exception as error:  # the user's own code
        raise UsageError(
            f"network {spec.name!r}: the function failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(network, nn.Module):
        raise UsageError(
            f"network {spec.name!r}: the function returned {_kind(network)}; expected a "
            "torch.nn.Module"
        )
    return network


def _function(spec: Spec) -> Callable[..., Any]:
    module_name, _, path = spec.name.partition(":")
    found = _module(spec, module_name)
    for name in path.split("."):
        if not hasattr(found, name):
            close = nearest(name, [known for known in dir(found) if not known.startswith("_")])
            offer = f"; nearest: {', '.join(close)}" if close else ""
            raise UsageError(
                f"network {spec.name!r}: no such function: {module_name!r} has no {name!r}{offer}"
            )
        found = getattr(found, name)
    if not callable(found):
        raise UsageError(
            f"network {spec.name!r}: it is {_kind(found)}; expected a function that returns a "
            "torch.nn.Module"
        )
    function: Callable[..., Any] = found
    return function


def _module(spec: Spec, name: str) -> Any:
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
                f"network {spec.name!r}: module {missing!r} not found; expected {FORM}, "
                f"importable from {here}"
            ) from error
        raise UsageError(
            f"network {spec.name!r}: importing {name!r} failed: {type(error).__name__}: {error}"
        ) from error


def _arguments(spec: Spec, function: Callable[..., Any]) -> dict[str, Any]:
    offered = {"input_shape": spec.input_shape, "num_classes": spec.num_classes}
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some callables written in C have no signature
        return {}
    parameters = signature.parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        taken = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        offered = {name: value for name, value in offered.items() if name in taken}
    try:
        signature.bind(**offered)
    except TypeError as error:
        raise UsageError(
            f"network {spec.name!r}: {error}, and {signature} are its parameters; it may require "
            "input_shape and num_classes, nothing else"
        ) from None
    return offered


def _kind(value: object) -> str:
    name = type(value).__name__
    return "nothing (None)" if value is None else f"a value of type {name}"
