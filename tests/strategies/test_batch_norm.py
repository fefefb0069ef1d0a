"""Batch normalisation over unequal shares against torch's over the whole batch.

Ranks are threads here: what matters is arithmetic. `test_conformance.py` has processes.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from convoy.comm import Comm
from convoy.strategies.batch_norm import (
    CrewBatchNorm,
    _Normalise,
    exchanged_bytes,
    synchronise_batch_norm,
)

SHARES = (1, 2, 5)
KINDS = {
    "1d, [N, C]": (nn.BatchNorm1d, (4,)),
    "1d, [N, C, L]": (nn.BatchNorm1d, (4, 3)),
    "2d": (nn.BatchNorm2d, (4, 3, 2)),
    "3d": (nn.BatchNorm3d, (4, 1, 2, 2)),
}


class Table:
    """Where threads put their tensors down to have them summed."""

    def __init__(self, num_ranks: int) -> None:
        self.meeting = threading.Barrier(num_ranks, timeout=5)
        self.tensors: dict[int, Tensor] = {}


class Seat:
    """A rank's place at a table: as much of a Comm as batch normalisation uses."""

    def __init__(self, table: Table, rank: int) -> None:
        self.rank, self._table = rank, table
        self.world_size = table.meeting.parties
        self.step_samples = 1
        self.reduced_bytes: list[int] = []

    def all_reduce(self, tensor: Tensor) -> None:
        self.reduced_bytes.append(tensor.numel() * tensor.element_size())
        self._table.tensors[self.rank] = tensor.clone()
        self._table.meeting.wait()
        tensor.copy_(sum(t for _, t in sorted(self._table.tensors.items())))
        self._table.meeting.wait()


class Ranks:
    """A module's copies over threads."""

    def __init__(self, module: nn.Module, num_ranks: int) -> None:
        table = Table(num_ranks)
        self.seats = [Seat(table, rank) for rank in range(num_ranks)]
        self.modules = [copy.deepcopy(module) for _ in self.seats]
        for replica, seat in zip(self.modules, self.seats, strict=True):
            synchronise_batch_norm(replica, seat)  # type: ignore[arg-type]

    def step(self, inputs: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
        """Forward and backward everywhere; the outputs. Gradients stay on the leaves."""

        def one(rank: int) -> Tensor:
            output: Tensor = self.modules[rank](inputs[rank])
            (output * grads[rank]).sum().backward()
            return output.detach()

        with ThreadPoolExecutor(len(self.seats)) as pool:
            return list(pool.map(one, range(len(self.seats)), timeout=60))


def made(kind: str, **options: object) -> nn.Module:
    layer, (channels, *_) = KINDS[kind]
    norm: nn.Module = layer(channels, **options).double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(random(*parameter.shape, seed=9))
    return norm


def random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 + 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def leaves(whole: Tensor, shares: Sequence[int]) -> list[Tensor]:
    return [part.clone().requires_grad_() for part in whole.split(list(shares))]


def close(actual: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def check_against_one_machine(
    norm: nn.Module, shape: Sequence[int], shares: Sequence[int], atol: float = 1e-12
) -> None:
    """Outputs, gradients and statistics of three steps."""
    ranks, alone = Ranks(norm, len(shares)), copy.deepcopy(norm)
    for step in range(3):
        inputs = random(sum(shares), *shape, seed=step).requires_grad_()
        grads = random(sum(shares), *shape, seed=100 + step)
        expected = alone(inputs)
        (expected * grads).sum().backward()
        parts = leaves(inputs.detach(), shares)
        outputs = ranks.step(parts, grads.split(list(shares)))
        close(torch.cat(outputs), expected.detach(), atol)
        assert inputs.grad is not None
        close(torch.cat([p.grad for p in parts if p.grad is not None]), inputs.grad, atol)
    for name, parameter in alone.named_parameters():
        total = sum(m.get_parameter(name).grad for m in ranks.modules)
        assert isinstance(total, Tensor)
        assert parameter.grad is not None
        close(total, parameter.grad, 10 * atol)
    for replica in ranks.modules:
        for name, buffer in alone.named_buffers():
            close(replica.get_buffer(name), buffer, atol)


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("kind", KINDS)
def test_unequal_ranks_are_one_machine(kind: str, momentum: float | None, affine: bool) -> None:
    norm = made(kind, momentum=momentum, affine=affine, eps=1e-3)
    check_against_one_machine(norm, KINDS[kind][1], SHARES)


def test_without_running_statistics() -> None:
    check_against_one_machine(made("2d", track_running_stats=False), KINDS["2d"][1], SHARES)


def test_a_scale_without_a_shift() -> None:
    norm = made("2d")
    norm.register_parameter("bias", None)
    check_against_one_machine(norm, KINDS["2d"][1], SHARES)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=4))
@settings(deadline=None, max_examples=20)
def test_any_shares(shares: list[int]) -> None:
    # Of two samples, variances may be small: what is left of digits is divided by them.
    check_against_one_machine(made("1d, [N, C]"), (4,), shares, atol=1e-9)


def test_a_mean_far_from_zero() -> None:
    """Variances are not lost in squares of the mean, in single precision either."""
    inputs = (1000 + random(8, 4, seed=0) / 10).float()
    ranks, alone = Ranks(nn.BatchNorm1d(4), 3), nn.BatchNorm1d(4).double()
    outputs = ranks.step(leaves(inputs, SHARES), inputs.split(SHARES))
    close(torch.cat(outputs).double(), alone(inputs.double()).detach(), atol=2e-3)


def test_a_rank_without_samples_takes_no_part() -> None:
    """Its stand-in sample counts for nothing, and nothing below it gets a gradient."""
    norm, alone = made("2d"), made("2d")
    ranks = Ranks(norm, 3)
    ranks.seats[1].step_samples = 0
    inputs, grads = random(7, 4, 3, 2, seed=0).requires_grad_(), random(7, 4, 3, 2, seed=1)
    expected = alone(inputs)
    (expected * grads).sum().backward()
    first, last = leaves(inputs.detach(), (2, 5))
    stand_in = random(1, 4, 3, 2, seed=2).requires_grad_()
    outputs = ranks.step([first, stand_in, last], [grads[:2], torch.zeros(1, 4, 3, 2), grads[2:]])
    close(torch.cat([outputs[0], outputs[2]]), expected.detach())
    assert first.grad is not None
    assert last.grad is not None
    assert stand_in.grad is not None
    assert inputs.grad is not None
    close(torch.cat([first.grad, last.grad]), inputs.grad)
    assert not stand_in.grad.any()
    for name, parameter in alone.named_parameters():
        idle = ranks.modules[1].get_parameter(name).grad
        assert idle is not None
        assert not idle.any()
        total = sum(m.get_parameter(name).grad for m in ranks.modules)
        assert isinstance(total, Tensor)
        assert parameter.grad is not None
        close(total, parameter.grad)
    for replica in ranks.modules:
        for name, buffer in alone.named_buffers():
            close(replica.get_buffer(name), buffer)


@pytest.mark.parametrize("track", [True, False], ids=["running", "batch"])
def test_in_evaluation_it_is_the_ordinary_one(track: bool) -> None:
    """Ranks evaluate different numbers of batches: they must not wait for each other."""
    norm = made("2d", track_running_stats=track)
    norm(random(8, 4, 3, 2, seed=0))
    ranks = Ranks(norm, 2)
    inputs = random(5, 4, 3, 2, seed=1)
    close(ranks.modules[0].eval()(inputs), norm.eval()(inputs))
    assert ranks.seats[0].reduced_bytes == []


def test_alone_it_is_the_ordinary_one() -> None:
    norm, alone = made("2d"), made("2d")
    synchronise_batch_norm(norm, Comm(rank=0, world_size=1))
    inputs = random(8, 4, 3, 2, seed=0)
    assert torch.equal(norm(inputs), alone(inputs))
    assert torch.equal(norm.running_var, alone.running_var)


def test_half_precision_inputs() -> None:
    inputs = random(8, 4, 3, 2, seed=0).bfloat16()
    ranks = Ranks(nn.BatchNorm2d(4), 3)
    outputs = ranks.step(leaves(inputs, SHARES), inputs.split(SHARES))
    assert {output.dtype for output in outputs} == {torch.bfloat16}
    alone = nn.BatchNorm2d(4)
    close(torch.cat(outputs).float(), alone(inputs.float()).detach(), atol=2e-2)
    for replica in ranks.modules:
        close(replica.running_var, alone.running_var, atol=1e-5)


def test_exchanges_are_those_announced() -> None:
    network = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 6), nn.BatchNorm1d(6)).double()
    ranks = Ranks(network, 2)
    inputs, grads = random(8, 4, seed=0), random(8, 6, seed=1)
    ranks.step(leaves(inputs, (3, 5)), grads.split((3, 5)))
    for seat in ranks.seats:
        # Float64: 2 C + 1 values forward, 2 C backward.
        assert seat.reduced_bytes == [9 * 8, 13 * 8, 12 * 8, 8 * 8]
        assert sorted(seat.reduced_bytes) == sorted(exchanged_bytes((4, 6)))


def test_modules_keep_their_names_and_follow_a_new_crew() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    names, parameters = list(network.state_dict()), list(network.parameters())
    for _ in range(2):
        comm = Comm(rank=0, world_size=1)
        synchronise_batch_norm(network, comm)
        assert isinstance(network[1], CrewBatchNorm)
        assert network[1].comm is comm
    assert list(network.state_dict()) == names
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))


def test_inputs_need_channels() -> None:
    norm = nn.BatchNorm2d(4)
    synchronise_batch_norm(norm, Comm(rank=0, world_size=1))
    with pytest.raises(ValueError, match=r"expected \[N, C, \.\.\.\], got \[4\]"):
        norm(torch.zeros(4))


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_gradients_are_those_of_finite_differences(affine: bool) -> None:
    """One rank that holds the whole batch, through the path that ranks take."""
    seat = Seat(Table(1), 0)
    x = random(5, 3, 2, seed=0).requires_grad_()
    weight = random(3, seed=1).requires_grad_() if affine else None
    bias = random(3, seed=2).requires_grad_() if affine else None

    def normalise(*tensors: Tensor | None) -> Tensor:
        output: Tensor = _Normalise.apply(*tensors, 1e-5, seat)[0]
        return output

    assert torch.autograd.gradcheck(normalise, (x, weight, bias), check_undefined_grad=False)
