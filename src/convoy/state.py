"""A rank's training state as flat named tensors: packed, loaded, copied, merged, handed over.

    model/conv1.weight             what the network's state_dict holds
    optimizer/conv1.weight/exp_avg the optimizer's state, by parameter

One form serves checkpoints, re-forming crews and the averages between them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from convoy.comm import Comm
from convoy.errors import CheckpointError

Tensors = dict[str, Tensor]


def pack(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """The live tensors of `model` and `optimizer`: no copies."""
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{name}/{key}"] = value
    return tensors


def first_names(model: nn.Module) -> dict[str, str]:
    """For every name in the network's state the first that its tensor has there."""
    firsts: dict[int, str] = {}
    names = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names[name] = firsts.setdefault(id(tensor), name)
    return names


def broken(tensors: Mapping[str, Tensor]) -> str | None:
    """The first tensor that holds something that is no finite number."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return name
    return None


def copy_of(tensors: Mapping[str, Tensor], device: str | None = None) -> Tensors:
    """Contiguous copies of `tensors`, on `device` if given."""
    return {
        name: tensor.detach()
        .to(device or tensor.device, copy=True)
        .contiguous(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


@torch.no_grad()
def load(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Make `model` and `optimizer` hold copies of `tensors`, exactly those.

    Raises:
        CheckpointError: tensors are missing or of another shape: this is another network's.
    """
    ours = model.state_dict()
    theirs = {n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")}
    wrong = sorted(
        (ours.keys() ^ theirs.keys())
        | {n for n in ours.keys() & theirs.keys() if ours[n].shape != theirs[n].shape}
    )
    if wrong:
        raise CheckpointError(
            f"the saved state is not of this network: {', '.join(wrong[:4])}"
            f"{' ...' if len(wrong) > 4 else ''} missing or of another shape. Give the "
            "--network that the run was started with"
        )
    optimizer.state.clear()
    put(model, optimizer, tensors)


@torch.no_grad()
def put(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """As `load`, for some of the tensors; the others stay as they are."""
    ours, parameters = model.state_dict(), dict(model.named_parameters())
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "model":
            ours[rest].copy_(tensor)
        else:
            owner, key = rest.rsplit("/", 1)
            parameter = parameters[owner]
            if tensor.shape == parameter.shape:  # with the parameter's layout and device
                value = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
            else:
                value = tensor.to("cpu", copy=True)  # counts of updates live on the host
            optimizer.state[parameter][key] = value


def merge(parts: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tensors:
    """The weighted average of several ranks' states; whole numbers come from the first.

    For a checkpoint taken while ranks' states differed, resumed by another number of ranks.
    """
    total = sum(weights)
    merged: Tensors = {}
    for name, first in parts[0].items():
        if first.is_floating_point() and first.dim() > 0:
            merged[name] = torch.stack(
                [part[name] * (weight / total) for part, weight in zip(parts, weights, strict=True)]
            ).sum(0)
        else:
            merged[name] = first.clone()
    return merged


def hand_over(comm: Comm, tensors: Tensors | None, source: int, device: torch.device) -> Tensors:
    """Give every rank the `tensors` of rank `source` (the others pass None).

    Tensors of one type travel as one, since each message has a latency.
    """
    table: list[tuple[str, list[int], str]] = []
    if tensors is not None:
        table = [
            (name, list(t.shape), str(t.dtype).removeprefix("torch."))
            for name, t in tensors.items()
        ]
    encoded = json.dumps(table).encode()
    length = torch.tensor([len(encoded)], dtype=torch.int64, device=device)
    comm.broadcast(length, source)
    text = torch.zeros(int(length.item()), dtype=torch.uint8, device=device)
    if tensors is not None:
        text.copy_(torch.frombuffer(bytearray(encoded), dtype=torch.uint8))
    comm.broadcast(text, source)
    table = json.loads(bytes(text.cpu().tolist()))

    by_dtype: defaultdict[str, list[tuple[str, list[int]]]] = defaultdict(list)
    for name, shape, dtype in table:
        by_dtype[dtype].append((name, shape))
    received: Tensors = {}
    for dtype, entries in by_dtype.items():
        sizes = [torch.Size(shape).numel() for _, shape in entries]
        kind = getattr(torch, dtype)
        if tensors is not None:
            flat = torch.cat([tensors[n].detach().reshape(-1).to(device) for n, _ in entries])
        else:
            flat = torch.empty(sum(sizes), dtype=kind, device=device)
        comm.broadcast(flat, source)
        for (name, shape), part in zip(entries, flat.split(sizes), strict=True):
            received[name] = part.view(shape)
    return received
