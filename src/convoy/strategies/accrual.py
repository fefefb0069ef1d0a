"""A replica's gradients between pushes, and its own steps between fetches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from convoy.strategies.server import Push


class Accrued:
    """Gradients of a replica since its last push."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._sums: dict[str, Tensor] = {}
        self._samples = 0

    def add(self, samples: int) -> Mapping[str, Tensor]:
        """Take the parameters' gradients, which are none afterwards; returns this step's own."""
        own = {}
        for name, parameter in self._parameters.items():
            gradient = parameter.grad
            own[name] = torch.zeros_like(parameter) if gradient is None else gradient
            parameter.grad = None
        if not self._sums:
            self._sums = dict(own)
        else:
            self._sums = {name: total + own[name] for name, total in self._sums.items()}
        self._samples += samples
        return own

    def taken(self, lr: float) -> Push:
        """All of them, as a push; there are none afterwards."""
        push = Push(gradients=self._sums, samples=self._samples, lr=lr)
        self._sums, self._samples = {}, 0
        return push


@torch.no_grad()
def descend(model: nn.Module, gradients: Mapping[str, Tensor], lr: float) -> None:
    """Plain SGD on the replica's own copy."""
    for name, parameter in model.named_parameters():
        if name in gradients:
            parameter.sub_(gradients[name], alpha=lr)
