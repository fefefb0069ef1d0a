"""A network's forward pass as a graph whose modules are the layers that are counted and timed."""

from __future__ import annotations

from collections.abc import Container

import torch.fx
from torch import nn


class UntraceableError(Exception):
    """A forward pass that torch.fx cannot follow; says why.

    Not a ConvoyError: whoever can do without a graph goes on, and who cannot says what to do.
    """


def graph_of(network: nn.Module, leaves: Container[nn.Module]) -> torch.fx.Graph:
    """What calls what in a forward pass; nothing is computed.

    Args:
        network: in the modes, training or not, of the pass that is meant.
        leaves: its modules that count as one layer.

    Raises:
        UntraceableError: which calls there are depends on what is in the tensors.
    """

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            del module_qualified_name
            return m in leaves

    try:
        return Tracer().trace(network)
    except Exception as error:  # whatever the user's code does when it gets no tensors
        raise UntraceableError(str(error).partition("\n")[0] or type(error).__name__) from error
