"""Dense layers of which each rank computes some neurons, for the samples of all ranks.

    rank r   x_r ── to all ──▶  x of all ─▶ its neurons ── to whose samples they are ──▶  y_r
             dy_r ─ columns ─▶ dy of its neurons ─▶ part of dx ── likewise ──▶ sum ─▶ dx_r
                                        └─▶ gradient of its weights, while those travel

Samples of other ranks are computed all at once, or in turns: a rank's own first, then those of
one rank after another, so that what comes next travels while the last is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convoy import state
from convoy.errors import UsageError
from convoy.strategies.base import Batch, Rank
from convoy.strategies.dense_shares import SplitLayer, rounds
from convoy.strategies.shares import cut


class DenseExchange:
    """Within it, `rank.model` computes its split layers together with the other ranks."""

    def __init__(self, rank: Rank, layers: Sequence[SplitLayer], *, in_turns: bool) -> None:
        self.rank, self.comm, self.device = rank, rank.comm, rank.device
        self.layers = layers
        self.rounds = rounds(self.comm.rank, self.comm.world_size, in_turns=in_turns)
        self._modules = [rank.model.get_submodule(layer.name) for layer in layers]
        first = state.first_names(rank.model)
        self.rows: dict[str, tuple[int, ...]] = {
            first[f"{layer.name}.{name}"]: layer.neurons
            for layer, module in zip(layers, self._modules, strict=True)
            for name, _ in module.named_parameters()
        }
        """How tensors are parted."""

    def of(self, batch: Batch) -> Self:
        """For this batch."""
        self._batch = batch
        self._samples = cut(batch.step_samples, self.rank.plan.shares)
        return self

    def __enter__(self) -> Self:
        for layer, module in zip(self.layers, self._modules, strict=True):
            module.forward = partial(self._forward, layer, module)
        return self

    def __exit__(self, *_: object) -> None:
        for module in self._modules:
            del module.forward
        del self._batch

    def _forward(self, layer: SplitLayer, module: nn.Module, x: Tensor) -> Tensor:
        """[..., I] of this rank's samples to [..., O]."""
        assert isinstance(module, nn.Linear)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        flat = x.reshape(-1, x.shape[-1])
        if len(flat) != layer.rows * len(self._batch.inputs):
            raise UsageError(
                f"{layer.name} gets {len(flat)} rows for {len(self._batch.inputs)} samples, where "
                f"{layer.rows} for each were expected: a dense layer can be split if every sample "
                f"gives as many. Leave it whole with --dense-above {self._weights(layer)}, or use "
                "--strategy data"
            )
        call = _Call(self, layer, [layer.rows * samples for samples in self._samples])
        made: Tensor = _Split.apply(call, flat, module.weight, module.bias)  # type: ignore[no-untyped-call]
        return made.view(*x.shape[:-1], made.shape[-1])

    def _weights(self, layer: SplitLayer) -> int:
        module = self.rank.model.get_submodule(layer.name)
        assert isinstance(module, nn.Linear)
        return module.in_features * module.out_features


class _Call:
    """One time that a forward pass comes to a split layer."""

    def __init__(self, exchange: DenseExchange, layer: SplitLayer, rows: list[int]) -> None:
        self._exchange, self._comm = exchange, exchange.comm
        self._me = exchange.comm.rank
        self._rows, self._neurons = rows, layer.neurons
        """Of each rank."""
        self._own = rows[self._me]
        self._others = [rank for rank in range(len(rows)) if rank != self._me]
        self._x: list[Tensor] = []
        """Inputs by round, kept for the backward pass."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """This rank's samples with the neurons of all ranks."""
        own = x[: self._own]  # a stand-in for no samples goes nowhere
        for rank in self._others:
            self._send(own, rank, neurons_of=rank, samples_of=self._me)
        xs = self._expect_samples(x.shape[1], x)
        ys = self._expect_neurons(lambda rank: self._neurons[rank], x)
        bias = None if bias is None else bias.to(x.dtype)

        def neurons(xs: Tensor) -> Tensor:
            return F.linear(xs, weight.to(x.dtype), bias)

        made, self._x = self._by_rounds(own, xs, neurons)
        if not self._own:
            return x.new_zeros(len(x), sum(self._neurons))
        parts = [
            made if rank == self._me else ys[rank]()
            for rank, neurons in enumerate(self._neurons)
            if neurons
        ]
        return torch.cat(parts, dim=1)

    def backward(
        self, dy: Tensor, x: Tensor, weight: Tensor, *, goes_on: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Gradients of this rank's input, and of its neurons' weights and biases."""
        dtype = x.dtype
        columns = dy[: self._own].to(dtype).split(self._neurons, dim=1)
        for rank in self._others:
            self._send(columns[rank], rank, neurons_of=rank, samples_of=self._me)
        dys = self._expect_samples(self._neurons[self._me], x)
        dxs = self._expect_neurons(lambda _: x.shape[1], x) if goes_on else {}

        def below(dys: Tensor) -> Tensor:
            return dys @ weight.to(dtype)

        made, kept = self._by_rounds(columns[self._me], dys, below if goes_on else None)
        d_weight, d_bias = torch.zeros_like(weight), weight.new_zeros(len(weight))
        for x_part, dy_part in zip(self._x, kept, strict=True):
            d_weight += dy_part.T @ x_part
            d_bias += dy_part.sum(0)
        self._x = []
        if not goes_on:
            return None, d_weight, d_bias
        dx = torch.zeros_like(x)
        for rank, neurons in enumerate(self._neurons):
            if neurons and self._own:
                dx[: self._own] += made if rank == self._me else dxs[rank]()
        return dx, d_weight, d_bias

    def _by_rounds(
        self,
        own: Tensor,
        coming: dict[int, Callable[[], Tensor]],
        compute: Callable[[Tensor], Tensor] | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Take in what each rank's samples have, compute with it, send back what comes out.

        Returns:
            What comes out of this rank's own, and what was computed with, round by round.
        """
        made, taken = own.new_zeros(self._own, 0), []
        for ranks in self._exchange.rounds if self._neurons[self._me] else ():
            present = [r for r in ranks if self._rows[r]]
            if not present:
                continue
            joined = torch.cat([own if r == self._me else coming[r]() for r in present])
            taken.append(joined)
            if compute is None:
                continue
            out = compute(joined).split([self._rows[r] for r in present])
            for rank, part in zip(present, out, strict=True):
                if rank == self._me:
                    made = part
                else:
                    self._send(part, rank, neurons_of=self._me, samples_of=rank)
        return made, taken

    def _send(self, tensor: Tensor, rank: int, *, neurons_of: int, samples_of: int) -> None:
        if self._neurons[neurons_of] and self._rows[samples_of]:
            self._comm.send_async(tensor.detach().to("cpu").contiguous(), rank)

    def _expect_samples(self, width: int, like: Tensor) -> dict[int, Callable[[], Tensor]]:
        """What comes of the others' samples, where there are any and neurons for them here."""
        if not self._neurons[self._me]:
            return {}
        return {
            rank: self._expect(rank, (self._rows[rank], width), like)
            for rank in self._others
            if self._rows[rank]
        }

    def _expect_neurons(
        self, width_of: Callable[[int], int], like: Tensor
    ) -> dict[int, Callable[[], Tensor]]:
        """What the others' neurons send back of this rank's samples."""
        if not self._own:
            return {}
        return {
            rank: self._expect(rank, (self._own, width_of(rank)), like)
            for rank in self._others
            if self._neurons[rank]
        }

    def _expect(self, rank: int, shape: tuple[int, int], like: Tensor) -> Callable[[], Tensor]:
        came = self._comm.receive_async(torch.empty(shape, dtype=like.dtype), rank)
        return lambda: came().to(self._exchange.device)


class _Split(torch.autograd.Function):
    """y = x Wᵀ + b, with the rows of W and b on several ranks."""

    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.call, ctx.has_bias = call, bias is not None
        ctx.save_for_backward(x, weight)
        return call.forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx, d_weight, d_bias = ctx.call.backward(
            gradients[0], x, weight, goes_on=ctx.needs_input_grad[1]
        )
        return None, dx, d_weight, d_bias if ctx.has_bias else None
