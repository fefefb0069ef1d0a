"""Parameters cut into shards of about as many bytes, for servers that hold one each.

    conv1.weight | conv2.weight                  | fc.weight                            | fc.bias
    ─────────────┴───────────────────────────────┼───────────┬───────────────────────────┴──────
                      shard 0                    | rows 0-39 |      rows 40-99    shard 1

The order is that of the network, so that neighbouring layers are mostly on the same shard. A tensor
that lies across a boundary is split by rows (along its first dimension) if it is large, and goes to
the side where most of it lies otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convoy.errors import UsageError

SPLIT_ABOVE = 0.25
"""Of what a shard should hold: a tensor that is larger may be split."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some rows of a named tensor."""

    name: str
    first: int
    """Row, along the first dimension."""
    rows: int
    elements: int


Pieces = tuple[Piece, ...]
"""What a shard holds."""


def divide(shapes: Mapping[str, Sequence[int]], num_shards: int) -> tuple[Pieces, ...]:
    """Cut tensors of these shapes into `num_shards` shards.

    Raises:
        UsageError: there is too little to fill so many.
    """
    total = sum(_elements(shape) for shape in shapes.values())
    target = total / num_shards
    shards: list[list[Piece]] = [[] for _ in range(num_shards)]
    begun = 0  # elements before this tensor
    for name, shape in shapes.items():
        size, rows = _elements(shape), shape[0] if shape else 1
        if size == 0:
            continue
        each = size // rows
        first = 0
        while first < rows:
            at = begun + first * each
            shard = min(num_shards - 1, int(at / target))
            boundary = (shard + 1) * target
            left = size - first * each
            taken = rows - first
            if at + left > boundary and shard < num_shards - 1:
                if size > SPLIT_ABOVE * target:
                    taken = min(taken, max(0, round((boundary - at) / each)))
                    if taken == 0:  # not even half a row fits
                        shard, taken = shard + 1, min(taken or rows, 1)
                elif at + left / 2 >= boundary:
                    shard += 1
            shards[shard].append(Piece(name=name, first=first, rows=taken, elements=taken * each))
            first += taken
        begun += size
    filled = [_joined(shard) for shard in shards if shard]
    while 0 < len(filled) < num_shards:  # rows larger than a shard leave others empty
        at = max(range(len(filled)), key=lambda i: (_splits(filled[i]), num_elements(filled[i])))
        if not _splits(filled[at]):
            break
        filled[at : at + 1] = _halves(filled[at])
    if len(filled) < num_shards:
        raise UsageError(
            f"--shards {num_shards}: {total:,} parameters in {len(shapes)} tensors, which are "
            f"split by rows, fill {len(filled)} shards. Give --shards {len(filled)} or fewer"
        )
    return tuple(filled)


def _splits(shard: Pieces) -> bool:
    """Whether a shard has more than one row."""
    return sum(piece.rows for piece in shard) > 1


def _halves(shard: Pieces) -> tuple[Pieces, Pieces]:
    """Two shards of one, cut where a row ends and as near to the middle as that can be."""
    ends, before = [], 0
    half = num_elements(shard) / 2
    for number, piece in enumerate(shard):
        each = piece.elements // piece.rows
        rows = min(piece.rows, max(1, round((half - before) / each)))
        if number == len(shard) - 1 and rows == piece.rows:
            rows -= 1
        ends.append((abs(before + rows * each - half), number, rows))
        before += piece.elements
    _, at, rows = min(end for end in ends if end[1] or end[2])
    piece = shard[at]
    parts = [
        Piece(
            name=piece.name,
            first=piece.first + begun,
            rows=count,
            elements=piece.elements // piece.rows * count,
        )
        for begun, count in ((0, rows), (rows, piece.rows - rows))
    ]
    first, second = ([part] if part.rows else [] for part in parts)
    return (*shard[:at], *first), (*second, *shard[at + 1 :])


def _joined(pieces: Sequence[Piece]) -> Pieces:
    """Neighbouring rows of one tensor as one piece."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last and last.name == piece.name and last.first + last.rows == piece.first:
            rows, elements = last.rows + piece.rows, last.elements + piece.elements
            joined[-1] = Piece(name=last.name, first=last.first, rows=rows, elements=elements)
        else:
            joined.append(piece)
    return tuple(joined)


def num_elements(shard: Pieces) -> int:
    """How many elements a shard holds."""
    return sum(piece.elements for piece in shard)


def gather(tensors: Mapping[str, Tensor], shard: Pieces) -> Tensor:
    """A shard's rows of `tensors`, one after another: [elements]."""
    return torch.cat(
        [
            tensors[p.name]
            .detach()
            .reshape(_rows(tensors[p.name]), -1)[p.first : p.first + p.rows]
            .reshape(-1)
            for p in shard
        ]
    )


@torch.no_grad()
def scatter(flat: Tensor, tensors: Mapping[str, Tensor], shard: Pieces) -> None:
    """Put a shard's [elements] back in their rows of `tensors`, in place."""
    parts = flat.split([piece.elements for piece in shard])
    for piece, part in zip(shard, parts, strict=True):
        whole = tensors[piece.name]
        if whole.dim() == 0:
            whole.copy_(part.view(()))
        else:
            place = whole.narrow(0, piece.first, piece.rows)
            place.copy_(part.view(place.shape))


def _rows(tensor: Tensor) -> int:
    return tensor.shape[0] if tensor.dim() else 1


def _elements(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
