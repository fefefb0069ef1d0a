"""What gradients are on their way to a parameter server: whole, halved, or only the largest.

    fp32        as they are (float64 where parameters are)
    bf16        rounded to bfloat16: half the bytes of float32
    topk:0.01   the hundredth with the largest magnitude, as positions and values; what is left out
                is added to the next push (error feedback: Stich et al. 2018, algorithm 1)

An encoded push is arrays of numpy, which travel as they are.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from convoy.errors import UsageError

Arrays = tuple[numpy.ndarray, ...]


@dataclass(frozen=True, kw_only=True)
class Wire:
    """How a push is encoded, and what weights are fetched as."""

    kind: str
    """fp32, bf16 or topk."""
    fraction: float = 1.0
    """Of elements, that topk sends."""

    def push_bytes(self, elements: int, element_bytes: int) -> int:
        """Payload bytes of a push of so many elements."""
        if self.kind == "topk":
            return self.kept(elements) * (4 + element_bytes)
        return elements * (2 if self.kind == "bf16" else element_bytes)

    def fetch_bytes(self, elements: int, element_bytes: int) -> int:
        """Payload bytes of so many weights."""
        return elements * (2 if self.kind == "bf16" else element_bytes)

    def kept(self, elements: int) -> int:
        """How many elements topk sends."""
        return max(1, math.ceil(self.fraction * elements)) if elements else 0


def parse_wire(text: str) -> Wire:
    """Read --wire.

    Raises:
        UsageError: it is none of fp32, bf16 and topk:FRACTION.
    """
    if text in ("fp32", "bf16"):
        return Wire(kind=text)
    kind, _, rest = text.partition(":")
    if kind == "topk":
        try:
            fraction = float(rest)
        except ValueError:
            fraction = math.nan
        if 0 < fraction <= 1:
            return Wire(kind="topk", fraction=fraction)
    raise UsageError(
        f"--wire {text}: expected fp32, bf16, or topk: and a fraction above 0 and up to 1, as in "
        "topk:0.01"
    )


class Encoder:
    """Encodes one replica's pushes to one shard; keeps what topk has left out so far."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._left: Tensor | None = None

    def __call__(self, gradient: Tensor) -> Arrays:
        """Encode [elements] of a floating-point type; of topk, the largest of it and the rest."""
        host = gradient.detach().cpu()
        if self._wire.kind == "bf16":
            return (as_bfloat16(host),)
        if self._wire.kind == "fp32":
            return (host.numpy(),)
        whole = host if self._left is None else host + self._left
        count = self._wire.kept(len(whole))
        positions = torch.topk(whole.abs(), count, sorted=False).indices
        values = whole[positions]
        self._left = whole.index_fill(0, positions, 0.0)
        return positions.to(torch.int32).numpy(), values.numpy()


def decode(arrays: Arrays, elements: int, dtype: torch.dtype) -> Tensor:
    """The push that was encoded: [elements] of `dtype`."""
    if len(arrays) == 2:
        whole = torch.zeros(elements, dtype=dtype)
        positions = torch.from_numpy(arrays[0].astype(numpy.int64))
        whole[positions] = _tensor(arrays[1]).to(dtype)
        return whole
    return from_array(arrays[0], dtype)


def as_array(weights: Tensor, wire: Wire) -> numpy.ndarray:
    """A copy of weights as they are fetched."""
    if wire.kind == "bf16":
        return as_bfloat16(weights)
    return weights.detach().clone().numpy()


def from_array(array: numpy.ndarray, dtype: torch.dtype) -> Tensor:
    """What `as_array` made, as a tensor."""
    tensor = _tensor(array)
    if array.dtype == numpy.int16:
        tensor = tensor.view(torch.bfloat16)
    return tensor.to(dtype)


def as_bfloat16(tensor: Tensor) -> numpy.ndarray:
    """Rounded to bfloat16, in the clothes of int16: numpy has no such type."""
    return tensor.detach().to(torch.bfloat16).view(torch.int16).numpy()


def _tensor(array: numpy.ndarray) -> Tensor:
    """A view of an array, also of one that may only be read: nobody writes to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)
