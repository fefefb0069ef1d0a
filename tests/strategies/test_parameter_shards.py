"""Cutting parameters into shards: nothing lost, nothing twice, about as much on each."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from convoy.errors import UsageError
from convoy.strategies.parameter_shards import (
    SPLIT_ABOVE,
    Piece,
    Pieces,
    divide,
    gather,
    num_elements,
    scatter,
)

Shapes = dict[str, tuple[int, ...]]

SHAPES = st.lists(
    st.one_of(
        st.just(()),
        st.tuples(st.integers(0, 40)),
        st.tuples(st.integers(0, 12), st.integers(0, 30)),
        st.tuples(*[st.integers(1, 4)] * 4),
    ),
    min_size=1,
    max_size=8,
).map(lambda shapes: {f"t{i}": shape for i, shape in enumerate(shapes)})


def rows_of(shape: tuple[int, ...]) -> int:
    """Of a tensor that has elements: what it can be split into."""
    return (shape[0] if shape else 1) if math.prod(shape) else 0


def all_rows(shapes: Shapes) -> list[tuple[str, int]]:
    return [(name, row) for name, shape in shapes.items() for row in range(rows_of(shape))]


def held(shards: tuple[Pieces, ...]) -> list[tuple[str, int]]:
    """The rows that shards hold, in their order."""
    return [
        (piece.name, piece.first + row)
        for shard in shards
        for piece in shard
        for row in range(piece.rows)
    ]


@st.composite
def divided(draw: st.DrawFn) -> tuple[Shapes, tuple[Pieces, ...]]:
    shapes = draw(SHAPES.filter(all_rows))
    return shapes, divide(shapes, draw(st.integers(1, min(9, len(all_rows(shapes))))))


@settings(deadline=None, max_examples=150)
@given(divided())
def test_every_row_is_on_one_shard_and_in_order(case: tuple[Shapes, tuple[Pieces, ...]]) -> None:
    shapes, shards = case
    assert held(shards) == all_rows(shapes)
    assert all(shards)
    for piece in (piece for shard in shards for piece in shard):
        assert piece.elements == piece.rows * math.prod(shapes[piece.name][1:]) > 0


@settings(deadline=None, max_examples=100)
@given(divided())
def test_neighbouring_rows_are_one_piece(case: tuple[Shapes, tuple[Pieces, ...]]) -> None:
    for shard in case[1]:
        names = [piece.name for piece in shard]
        assert len(set(names)) == len(names)


@settings(deadline=None, max_examples=150)
@given(divided())
def test_no_shard_is_larger_than_its_part_and_what_was_not_split(
    case: tuple[Shapes, tuple[Pieces, ...]],
) -> None:
    """Each end of a shard is at most half a row off, or half a tensor that is not split."""
    shapes, shards = case
    target = sum(map(math.prod, shapes.values())) / len(shards)
    row = max(math.prod(shape[1:]) for shape in shapes.values() if rows_of(shape))
    off = max(row, SPLIT_ABOVE * target)
    assert max(map(num_elements, shards)) <= target + off + 1e-6


@settings(deadline=None, max_examples=120)
@given(SHAPES, st.integers(1, 400))
def test_there_are_as_many_shards_as_asked_for_or_it_is_said_how_many_fit(
    shapes: Shapes, num_shards: int
) -> None:
    fit = len(all_rows(shapes))
    if num_shards <= fit:
        assert len(divide(shapes, num_shards)) == num_shards
    else:
        with pytest.raises(UsageError, match=rf"^--shards {num_shards}: .*--shards {fit} or fewer"):
            divide(shapes, num_shards)


def test_rows_larger_than_a_shard_leave_no_shard_empty() -> None:
    """A wide row takes what two shards would hold; the rows after it are shared by both."""
    shards = divide({"wide": (1, 1000), "a": (1,), "b": (1,)}, 3)
    assert [[piece.name for piece in shard] for shard in shards] == [["wide"], ["a"], ["b"]]


def test_a_large_tensor_is_split_and_a_small_one_goes_where_most_of_it_lies() -> None:
    shapes = {"conv": (10, 4), "fc": (100, 10), "bias": (20,)}
    first, second = divide(shapes, 2)  # of 530 each: 40 and 49 rows of fc
    assert first == (
        Piece(name="conv", first=0, rows=10, elements=40),
        Piece(name="fc", first=0, rows=49, elements=490),
    )
    assert second == (
        Piece(name="fc", first=49, rows=51, elements=510),
        Piece(name="bias", first=0, rows=20, elements=20),
    )
    # of 500 each: 24 elements lie across the boundary, which is 4 or 20 elements into them
    for before, side in ((496, 1), (480, 0)):
        shards = divide({"a": (before,), "b": (2, 12), "c": (976 - before,)}, 2)
        assert [any(piece.name == "b" for piece in shard) for shard in shards].index(True) == side
        assert sum(piece.name == "b" for shard in shards for piece in shard) == 1


def test_one_shard_is_everything() -> None:
    (only,) = divide({"a": (3, 2), "b": (), "none": (0, 4)}, 1)
    assert only == (
        Piece(name="a", first=0, rows=3, elements=6),
        Piece(name="b", first=0, rows=1, elements=1),
    )


@settings(deadline=None, max_examples=100)
@given(divided(), st.booleans())
def test_what_is_gathered_is_scattered_where_it_was(
    case: tuple[Shapes, tuple[Pieces, ...]], channels_last: bool
) -> None:
    shapes, shards = case
    tensors = numbered(shapes, channels_last)
    parts = [gather(tensors, shard) for shard in shards]
    # one after another they are the tensors, row by row
    expected = torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
    assert torch.equal(torch.cat(parts), expected)
    assert [len(part) for part in parts] == [num_elements(shard) for shard in shards]
    others = {name: torch.full_like(tensor, -1.0) for name, tensor in tensors.items()}
    for part, shard in zip(parts, shards, strict=True):
        scatter(part, others, shard)
    for name, tensor in tensors.items():
        assert torch.equal(others[name], tensor)
        assert others[name].stride() == tensor.stride()


def numbered(shapes: Shapes, channels_last: bool) -> dict[str, Tensor]:
    """Tensors in which every element is another number."""
    tensors, number = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        tensor = torch.arange(number, number + size, dtype=torch.float64).reshape(shape)
        if channels_last and tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        tensors[name], number = tensor, number + size
    return tensors


def test_scattering_leaves_other_rows_alone() -> None:
    whole = {"a": torch.zeros(4, 2)}
    scatter(torch.ones(4), whole, (Piece(name="a", first=1, rows=2, elements=4),))
    assert whole["a"].tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]


def test_parameters_are_gathered_as_copies_without_gradients() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    found = gather({"a": parameter}, (Piece(name="a", first=0, rows=3, elements=3),))
    found += 1
    assert not found.requires_grad
    assert parameter.tolist() == [0, 0, 0]
    scatter(found, {"a": parameter}, (Piece(name="a", first=0, rows=3, elements=3),))
    assert parameter.tolist() == [1, 1, 1]
    assert parameter.requires_grad
