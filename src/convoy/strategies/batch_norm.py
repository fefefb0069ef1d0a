"""Batch normalisation over the samples of all ranks, weighted by their counts.

Each rank sends its count, means and mean squares in one all-reduce forward, and two sums per
channel in one backward:

    forward   all-reduce [n, n μ_c, n (σ²_c + μ_c²)]      float64, 2 C + 1 values
    backward  all-reduce [Σ dy, Σ dy x̂]                   float64, 2 C values

With them the result equals what one machine computes on the whole batch (Ioffe & Szegedy
2015, algorithm 1), for any shares. torch's own SyncBatchNorm runs on CUDA only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convoy.comm import Comm

_BYTES = 8


def exchanged_bytes(channels: Iterable[int]) -> list[int]:
    """Payload bytes of each all-reduce of one step: for every layer forward, then backward."""
    return [count * _BYTES for c in channels for count in (2 * c + 1, 2 * c)]


def synchronise_batch_norm(model: nn.Module, comm: Comm) -> None:
    """Make every batch normalisation of `model` take statistics over all ranks of `comm`.

    Changes modules in place and keeps their names and parameters. Call it again with a new
    `comm` when the ranks have re-formed.
    """
    for module in model.modules():
        if isinstance(module, CrewBatchNorm):
            module.comm = comm
        elif isinstance(module, _BatchNorm):
            module.__class__ = CrewBatchNorm
            module.comm = comm  # type: ignore[assignment]


class CrewBatchNorm(_BatchNorm):
    """A batch normalisation whose batch is that of all ranks.

    Input [N, C, ...]. In evaluation mode it is the ordinary one.
    """

    comm: Comm

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected [N, C, ...], got {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input` over all ranks' samples; update the running statistics."""
        self._check_input_dim(input)
        if self.comm.world_size == 1 or not self.training:
            return super().forward(input)
        output, mean, variance, count = _Normalise.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, self.eps, self.comm
        )
        if self.running_mean is not None:
            self._update_running(mean, variance * (count / max(count - 1, 1)))
        result: Tensor = output
        return result

    @torch.no_grad()
    def _update_running(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:  # cumulative average, as torch defines it
            momentum = 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), momentum)


class _Normalise(torch.autograd.Function):
    """x̂ = (x - μ) / sqrt(σ² + ε), y = γ x̂ + β, with μ and σ² over all ranks."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, comm: Comm
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        axes = [0, *range(2, x.dim())]
        per_rank = x.numel() // x.shape[1] if comm.step_samples else 0
        variance, mean = torch.var_mean(x.float() if x.dtype == torch.bfloat16 else x, axes, False)
        mean, variance = mean.double(), variance.double()
        sums = torch.cat([mean, variance + mean * mean, mean.new_ones(1)]) * per_rank
        comm.all_reduce(sums)
        count = float(sums[-1])
        mean, mean_square = (sums[:-1] / count).chunk(2)
        variance = (mean_square - mean * mean).clamp_min_(0.0)

        dtype = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
        shape = [1, -1] + [1] * (x.dim() - 2)
        scale = torch.rsqrt(variance + eps).to(dtype).view(shape)
        normalised = (x - mean.to(dtype).view(shape)) * scale
        ctx.save_for_backward(normalised, weight, scale)
        ctx.comm, ctx.count, ctx.axes, ctx.has_bias = comm, count, axes, bias is not None
        ctx.stands_in = per_rank == 0
        output = normalised
        if weight is not None:
            output = output * weight.view(shape)
        if bias is not None:
            output = output + bias.view(shape)
        ctx.mark_non_differentiable(mean, variance)
        ctx.set_materialize_grads(False)
        return output.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        normalised, weight, scale = ctx.saved_tensors
        dy = grads[0]
        assert dy is not None
        dtype, dy = dy.dtype, dy.to(normalised.dtype)
        sum_dy = dy.sum(ctx.axes, dtype=torch.float64)
        sum_dy_x = (dy * normalised).sum(ctx.axes, dtype=torch.float64)
        sums = torch.cat([sum_dy, sum_dy_x])
        ctx.comm.all_reduce(sums)
        total_dy, total_dy_x = ((sums / ctx.count).to(dy.dtype).view(2, *scale.shape)).unbind()
        dx = (dy - total_dy - normalised * total_dy_x) * scale
        if weight is not None:
            dx = dx * weight.view(scale.shape)
        if ctx.stands_in:  # the statistics do not depend on it
            dx = torch.zeros_like(dx)
        return (
            dx.to(dtype),
            sum_dy_x.to(weight.dtype) if weight is not None else None,
            sum_dy.to(dy.dtype) if ctx.has_bias else None,
            None,
            None,
        )
