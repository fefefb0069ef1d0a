"""Shards' parts as one training state, and one training state as shards' parts.

The state is that of every other strategy (`convoy.state`), so that a run can be resumed with
another number of shards, or with another strategy altogether.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from convoy.runtime.servers.shard import ShardState
from convoy.state import Tensors
from convoy.strategies.parameter_shards import Pieces, gather, scatter

COUNTER = "step"
"""What torch's optimizers call the number of steps that a parameter has done: a scalar."""


def parts_of(
    tensors: Mapping[str, Tensor], pieces: Sequence[Pieces], versions: Sequence[int]
) -> list[ShardState]:
    """What each shard starts with, out of a whole state (`model/...`, `optimizer/...`)."""
    weights = _under("model/", tensors)
    keys = sorted({name.rpartition("/")[2] for name in tensors if name.startswith("optimizer/")})
    states = []
    for shard, version in zip(pieces, versions, strict=True):
        kept: dict[str, Tensor] = {}
        for key in keys:
            of_key = {p.name: tensors.get(f"optimizer/{p.name}/{key}") for p in shard}
            known = {name: value for name, value in of_key.items() if value is not None}
            if not known:
                continue
            if key == COUNTER:
                kept[key] = torch.stack(list(known.values())).max()
                continue
            # what the optimizer has not moved yet has none, which is as much as zeros
            filled = {p.name: known.get(p.name, torch.zeros_like(weights[p.name])) for p in shard}
            kept[key] = gather(filled, shard)
        states.append(ShardState(version=version, weights=gather(weights, shard), optimizer=kept))
    return states


def whole_of(
    base: Mapping[str, Tensor], pieces: Sequence[Pieces], states: Sequence[ShardState]
) -> Tensors:
    """A whole state: the shards' rows, and of `base` (a state dict) whatever no shard holds."""
    weights = {name: tensor.clone() for name, tensor in base.items()}
    whole: Tensors = {}
    for shard, state in zip(pieces, states, strict=True):
        scatter(state.weights, weights, shard)
        for key, value in state.optimizer.items():
            for piece in shard:
                name = f"optimizer/{piece.name}/{key}"
                if key == COUNTER:
                    whole[name] = value.clone()
                elif name not in whole:
                    whole[name] = torch.zeros_like(weights[piece.name])
            if key != COUNTER:
                of_key = {p.name: whole[f"optimizer/{p.name}/{key}"] for p in shard}
                scatter(value, of_key, shard)
    return whole | {f"model/{name}": tensor for name, tensor in weights.items()}


def average_buffers(known: Sequence[tuple[Mapping[str, Tensor], float]]) -> Tensors:
    """Replicas' buffers as one: the mean by weight, of whole numbers the largest.

    Not every device has all of them.
    """
    merged: Tensors = {}
    for name in dict.fromkeys(name for buffers, _ in known for name in buffers):
        values = [(buffers[name], weight) for buffers, weight in known if name in buffers]
        first, total = values[0][0], sum(weight for _, weight in values)
        if not first.is_floating_point():
            merged[name] = torch.stack([value for value, _ in values]).max(dim=0).values
        elif total:
            merged[name] = sum(
                (value * (weight / total) for value, weight in values), torch.zeros_like(first)
            )
    return merged


def network_in(tensors: Mapping[str, Tensor]) -> Tensors:
    """The network's state dict out of a whole state."""
    return _under("model/", tensors)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
