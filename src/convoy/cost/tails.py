"""Which layers after a convolution act on each of its channels alone.

    conv1 ─ norm1 ─ relu1 ─ pool1 ─ conv2        the tail of conv1 is norm1, relu1, pool1

Whoever computes some of a convolution's filters can then compute the tail of those as well, and
what travels is what comes out of it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch.fx
from torch import nn

from convoy.cost.graph import UntraceableError, graph_of

CHANNELWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Identity),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    *(nn.BatchNorm2d, nn.InstanceNorm2d),
)
"""Exactly these: a class derived from one of them may do anything."""


def tails_of(network: nn.Module, leaves: dict[nn.Module, str]) -> dict[str, tuple[str, ...]]:
    """By convolution, the layers that follow it one after another and act channel by channel.

    A layer belongs to a tail if it is a module that is called once, with nothing but the output
    of the one before, which nothing else reads. Of a network that torch.fx cannot trace (its
    forward pass depends on what is in its tensors) nothing is known: {}.

    Args:
        network: it is not run.
        leaves: its modules that count as one layer, by name.
    """
    try:
        nodes = list(graph_of(network, leaves).nodes)
    except UntraceableError:
        return {}
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    by_name = {name: module for module, name in leaves.items()}
    tails: dict[str, tuple[str, ...]] = {}
    for node in nodes:
        if node.op != "call_module" or not isinstance(by_name.get(str(node.target)), nn.Conv2d):
            continue
        tail: list[str] = []
        reader = _only_reader(node)
        while reader is not None and calls[reader.target] == 1:
            module = by_name.get(str(reader.target))
            if type(module) not in CHANNELWISE or getattr(module, "return_indices", False):
                break
            tail.append(str(reader.target))
            reader = _only_reader(reader)
        if calls[node.target] == 1:
            tails[str(node.target)] = tuple(tail)
    return tails


def _only_reader(node: torch.fx.Node) -> Any:
    """The module call that alone reads a node, and reads nothing else; None if there is none."""
    if len(node.users) != 1:
        return None
    (reader,) = node.users
    alone = reader.op == "call_module" and reader.args == (node,) and not reader.kwargs
    return reader if alone else None
