"""What travels to parameter servers: exact, rounded, or the largest and the rest later."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from convoy.errors import UsageError
from convoy.strategies.push_codec import (
    Arrays,
    Encoder,
    Wire,
    as_array,
    decode,
    from_array,
    parse_wire,
)

BOTH = [torch.float32, torch.float64]
SEEDS = st.integers(0, 2**31)


def random(elements: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(elements, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def read_only(arrays: Arrays) -> Arrays:
    """As they come out of Ray's store."""
    copies = tuple(array.copy() for array in arrays)
    for copy in copies:
        copy.flags.writeable = False
    return copies


@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("text", ["fp32", "topk:1"])
def test_all_of_a_push_arrives_as_it_is(text: str, dtype: torch.dtype) -> None:
    gradient = random(50, dtype)
    arrays = Encoder(parse_wire(text))(gradient)
    found = decode(read_only(arrays), 50, dtype)
    assert found.dtype == dtype
    assert torch.equal(found, gradient)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(width=32, allow_subnormal=True), min_size=1, max_size=20))
def test_half_of_a_push_is_rounded_to_the_nearest_and_ties_to_even(values: list[float]) -> None:
    """By hand: the upper 16 bits of a float32, after adding just under half of the lower."""
    gradient = torch.tensor(values)
    found = decode(read_only(Encoder(Wire(kind="bf16"))(gradient)), len(values), torch.float32)
    bits = gradient.numpy().view(numpy.uint32).astype(numpy.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16
    expected = torch.from_numpy(rounded.astype(numpy.uint32).view(numpy.float32))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("text", ["fp32", "bf16", "topk:0.1", "topk:0.001", "topk:1"])
@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("elements", [1, 7, 1000])
def test_bytes_are_as_foreseen(text: str, dtype: torch.dtype, elements: int) -> None:
    wire, gradient = parse_wire(text), random(elements, dtype)
    pushed = sum(array.nbytes for array in Encoder(wire)(gradient))
    assert pushed == wire.push_bytes(elements, dtype.itemsize)
    assert as_array(gradient, wire).nbytes == wire.fetch_bytes(elements, dtype.itemsize)


def test_bytes_by_hand() -> None:
    assert Wire(kind="fp32").push_bytes(1000, 4) == Wire(kind="fp32").fetch_bytes(1000, 4) == 4000
    assert Wire(kind="fp32").push_bytes(1000, 8) == 8000
    assert Wire(kind="bf16").push_bytes(1000, 4) == Wire(kind="bf16").fetch_bytes(1000, 4) == 2000
    topk = parse_wire("topk:0.01")
    assert topk.push_bytes(1000, 4) == 10 * (4 + 4)  # positions and values
    assert topk.push_bytes(1000, 8) == 10 * (4 + 8)
    assert topk.push_bytes(1001, 4) == 11 * (4 + 4)
    assert topk.push_bytes(1, 4) == 4 + 4
    assert topk.push_bytes(0, 4) == 0
    assert topk.fetch_bytes(1000, 4) == 4000


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(1, 60), st.floats(0.01, 1.0))
def test_the_largest_arrive_and_nothing_else(seed: int, elements: int, fraction: float) -> None:
    gradient = random(elements, torch.float64, seed)
    wire = Wire(kind="topk", fraction=fraction)
    found = decode(read_only(Encoder(wire)(gradient)), elements, torch.float64)
    sent = found != 0
    assert int(sent.sum()) == wire.kept(elements) == math.ceil(fraction * elements)
    assert torch.equal(found[sent], gradient[sent])
    left_out = gradient[~sent].abs()
    assert not len(left_out) or left_out.max() <= found[sent].abs().min()


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(1, 40), st.floats(0.01, 0.9), st.integers(1, 12))
def test_what_is_left_out_comes_later(
    seed: int, elements: int, fraction: float, pushes: int
) -> None:
    """A gradient of zeros has the rest sent: in the end all has arrived, and once."""
    wire = Wire(kind="topk", fraction=fraction)
    encoder = Encoder(wire)
    gradients = [random(elements, torch.float64, seed + i) for i in range(pushes)]
    nothing = torch.zeros(elements, dtype=torch.float64)
    flushes = -(-elements // wire.kept(elements))
    arrived = torch.zeros(elements, dtype=torch.float64)
    for gradient in [*gradients, *[nothing] * flushes]:
        arrived += decode(encoder(gradient), elements, torch.float64)
    torch.testing.assert_close(arrived, torch.stack(gradients).sum(0), rtol=0, atol=1e-13)


def test_an_element_that_is_small_each_time_is_sent_when_it_has_added_up() -> None:
    encoder = Encoder(Wire(kind="topk", fraction=0.5))
    gradient = torch.tensor([1.0, 0.4], dtype=torch.float64)
    found = [decode(encoder(gradient), 2, torch.float64).tolist() for _ in range(3)]
    assert found[:2] == [[1.0, 0.0], [1.0, 0.0]]
    assert found[2] == [0.0, pytest.approx(1.2)]


def test_encoding_leaves_the_gradient_as_it_is() -> None:
    gradient = random(20)
    before = gradient.clone()
    for text in ("fp32", "bf16", "topk:0.2"):
        encoder = Encoder(parse_wire(text))
        encoder(gradient)
        encoder(gradient)
    assert torch.equal(gradient, before)


@pytest.mark.parametrize("text", ["fp32", "topk:0.01"])
@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_weights_are_fetched_as_they_are_and_as_a_copy(text: str, dtype: torch.dtype) -> None:
    weights = torch.nn.Parameter(random(30, dtype))
    array = as_array(weights, parse_wire(text))
    before = weights.detach().clone()
    with torch.no_grad():
        weights.zero_()
    (kept,) = read_only((array,))
    found = from_array(kept, dtype)
    assert found.dtype == dtype
    assert torch.equal(found, before)


def test_weights_are_fetched_in_half_as_many_bytes() -> None:
    weights = random(30)
    (kept,) = read_only((as_array(weights, Wire(kind="bf16")),))
    assert torch.equal(from_array(kept, torch.float32), weights.bfloat16().float())


@pytest.mark.parametrize("text", ["fp32", "bf16", "topk:0.5"])
def test_a_shard_of_another_type_takes_it_as_its_own(text: str) -> None:
    found = decode(Encoder(parse_wire(text))(torch.ones(4)), 4, torch.float64)
    assert found.dtype == torch.float64
    assert found.sum() == {"topk:0.5": 2}.get(text, 4)


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        ("fp32", Wire(kind="fp32")),
        ("bf16", Wire(kind="bf16")),
        ("topk:0.01", Wire(kind="topk", fraction=0.01)),
        ("topk:1", Wire(kind="topk", fraction=1.0)),
        ("topk:1e-3", Wire(kind="topk", fraction=0.001)),
    ],
)
def test_wires_by_name(text: str, wire: Wire) -> None:
    assert parse_wire(text) == wire


@pytest.mark.parametrize(
    "text",
    [
        *("", "fp16", "FP32", "bf16:0.5", "fp32:1", "topk", "topk:", "topk:0", "topk:-0.1"),
        *("topk:1.01", "topk:nan", "topk:inf", "topk:a", "topk:0.1:2", "top:0.1"),
    ],
)
def test_other_wires_say_what_was_expected(text: str) -> None:
    expected = r"expected fp32, bf16, or topk: and a fraction above 0 and up to 1, as in topk:0\.01"
    with pytest.raises(UsageError, match=rf"^--wire {text}: {expected}"):
        parse_wire(text)
