"""A network that the user's own code returns: `package.module:function`, or the function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from convoy.errors import ConvoyError, UsageError
from convoy.networks.spec import Spec
from convoy.user_code import load_function, type_of


def imported(spec: Spec) -> nn.Module:
    """What the function returns. It is given `input_shape` and `num_classes` if it takes them.

    Raises:
        UsageError: there is no such module or function, it needs other arguments, it fails, or
            it returns something else than a module.
    """
    function = load_function(spec.name, kind="network", returns="a torch.nn.Module")
    return made_by(function, spec)


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
            f"network {spec.name!r}: the function returned {type_of(network)}; expected a "
            "torch.nn.Module"
        )
    return network


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
