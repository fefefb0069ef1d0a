"""A shard without Ray: its methods on a loop of our own, against torch's optimizers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convoy.runtime.optimization import make_optimizer
from convoy.runtime.servers.shard import Answer, PushMessage, Shard, ShardOrders, ShardState
from convoy.runtime.settings import TrainSettings
from convoy.strategies.parameter_shards import divide, gather, scatter
from convoy.strategies.push_codec import Encoder, from_array, parse_wire
from convoy.strategies.server import ServerTerms

OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": "sgd", "momentum": 0.0},
    {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    {"optimizer": "adagrad", "weight_decay": 0.1},
    {"optimizer": "adam", "weight_decay": 0.1},
    {"optimizer": "adamax", "weight_decay": 0.1},
    {"optimizer": "adadelta", "weight_decay": 0.1},
]
NAMES = ["sgd", "momentum", "adagrad", "adam", "adamax", "adadelta"]
PLAIN: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _nobody_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket: what travels is in test_client.py."""
    monkeypatch.setattr(Shard, "_listen_at", lambda self, address: f"tcp://{address}:0")


async def shard_of(
    weights: Tensor,
    settings: dict[str, Any] | None = None,
    *,
    version: int = 0,
    kept: dict[str, Tensor] | None = None,
    **changes: Any,
) -> Shard:
    terms: dict[str, Any] = {
        "bound": None,
        "staleness_scaled": False,
        "depth": 0,
        "deepens": False,
        "wire": parse_wire("fp32"),
        "window": 1,
        "warm_start": 0,
        "snapshot_s": 30,
    }
    shard = Shard()
    await shard.load(
        ShardOrders(
            index=0,
            session="test",
            address="127.0.0.1",
            settings=TrainSettings(**(settings or PLAIN)),
            terms=ServerTerms(**(terms | changes)),
            state=ShardState(version=version, weights=weights, optimizer=kept or {}),
        )
    )
    return shard


NUMBERS = itertools.count(1)


def message(gradient: Tensor, *, wire: str = "fp32", **changes: Any) -> PushMessage:
    values: dict[str, Any] = {
        "replica": 0,
        "number": next(NUMBERS),
        "base": 0,
        "holds": (),
        "samples": 1,
        "lr": 0.1,
        "arrays": Encoder(parse_wire(wire))(gradient),
        "fetch": True,
    }
    return PushMessage(**(values | changes))


def go(program: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(program, timeout=20)

    asyncio.run(limited())


async def under_way(shard: Shard, sent: PushMessage) -> asyncio.Task[Answer]:
    """A push that has arrived."""
    task = asyncio.create_task(shard.push(sent))
    for _ in range(3):
        await asyncio.sleep(0)
    return task


def weights_in(answer: Answer) -> Tensor:
    assert answer.weights is not None
    return from_array(answer.weights, torch.float64)


def ones(count: int = 2, value: float = 1.0) -> Tensor:
    return torch.full((count,), value, dtype=torch.float64)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(20, 7)).double()


def gradients_of(model: nn.Module, count: int) -> list[dict[str, Tensor]]:
    source = torch.Generator().manual_seed(1)
    return [
        {
            name: torch.randn(p.shape, dtype=p.dtype, generator=source)
            for name, p in model.named_parameters()
        }
        for _ in range(count)
    ]


def alone(
    model: nn.Module, settings: dict[str, Any], pushes: Sequence[dict[str, Tensor]]
) -> torch.optim.Optimizer:
    """One optimizer over everything; rates rise from push to push."""
    optimizer = make_optimizer(model, TrainSettings(**settings))
    for number, gradients in enumerate(pushes, start=1):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * number
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name].clone()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=NAMES)
@pytest.mark.parametrize("num_shards", [1, 4])
def test_shards_together_are_one_optimizer(settings: dict[str, Any], num_shards: int) -> None:
    async def program() -> None:
        model, other = network(), network()
        pushes = gradients_of(model, 5)
        alone(model, settings, pushes)
        trained = dict(other.named_parameters())
        pieces = divide({name: tuple(p.shape) for name, p in trained.items()}, num_shards)
        shards = [await shard_of(gather(trained, piece), settings) for piece in pieces]
        for number, gradients in enumerate(pushes, start=1):
            for shard, piece in zip(shards, pieces, strict=True):
                sent = message(gather(gradients, piece), lr=0.01 * number, base=number - 1)
                answer = await shard.push(sent)
                assert answer.version == number
                scatter(weights_in(answer), trained, piece)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(trained[name], parameter, rtol=0, atol=1e-12)

    go(program())


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=NAMES)
@pytest.mark.parametrize("before", [0, 3])
def test_a_shard_goes_on_from_a_snapshot(settings: dict[str, Any], before: int) -> None:
    async def program() -> None:
        pushes = [torch.randn(6, dtype=torch.float64) for _ in range(before + 3)]
        first = await shard_of(ones(6), settings)
        for push in pushes[:before]:
            await first.push(message(push))
        state = await first.snapshot()
        kept = {key: value.clone() for key, value in state.optimizer.items()}
        second = await shard_of(
            state.weights, settings, version=state.version, kept=state.optimizer
        )
        for push in pushes[before:]:
            answer, expected = await second.push(message(push)), await first.push(message(push))
            assert answer.version == expected.version
            assert torch.equal(weights_in(answer), weights_in(expected))
        assert state.version == before  # and nothing of it has moved since
        assert all(torch.equal(state.optimizer[key], value) for key, value in kept.items())

    go(program())


def test_a_snapshot_is_a_copy() -> None:
    async def program() -> None:
        start = ones()
        shard = await shard_of(start)
        state = await shard.snapshot()
        await shard.push(message(ones()))
        assert state.weights.tolist() == start.tolist() == [1, 1]

    go(program())


def test_pushes_are_updates_in_the_order_in_which_they_arrive() -> None:
    """With momentum, and rates of their own, another order would end elsewhere."""

    async def program() -> None:
        shard = await shard_of(ones(1), {"optimizer": "sgd", "momentum": 0.5})
        sent = [(0, 1.0, 0.1), (1, 10.0, 0.2), (0, 100.0, 0.3)]
        tasks = [
            asyncio.create_task(shard.push(message(ones(1, g), replica=replica, lr=lr)))
            for replica, g, lr in sent
        ]
        answers = await asyncio.gather(*tasks)
        weight, velocity, expected = 1.0, 0.0, []
        for _, gradient, lr in sent:
            velocity = 0.5 * velocity + gradient
            weight -= lr * velocity
            expected.append(weight)
        assert [weights_in(a).item() for a in answers] == pytest.approx(expected, rel=1e-12)
        assert [a.version for a in answers] == [1, 2, 3]
        assert [a.staleness for a in answers] == [0, 1, 2]

    go(program())


def test_fetching_gives_weights_and_their_version() -> None:
    async def program() -> None:
        shard = await shard_of(ones(), version=7)
        for found in (await shard.fetch(0), await shard.refetch(0)):
            assert (found.version, found.staleness) == (7, None)
            assert weights_in(found).tolist() == [1, 1]
        silent = await shard.push(message(ones(), base=7, fetch=False))
        assert silent.weights is None
        assert (silent.version, silent.staleness) == (8, 0)
        assert weights_in(await shard.fetch(0)).tolist() == pytest.approx([0.9, 0.9])

    go(program())


def test_what_was_fetched_stays_as_it_was() -> None:
    async def program() -> None:
        shard = await shard_of(ones())
        found = await shard.fetch(0)
        await shard.push(message(ones()))
        assert weights_in(found).tolist() == [1, 1]

    go(program())


def test_a_bound_of_zero_takes_the_mean_over_samples() -> None:
    async def program() -> None:
        shard = await shard_of(ones(1), bound=0)
        await shard.join([0, 1, 2])
        for replica in range(3):
            await shard.fetch(replica)
        gradients, samples = (6.0, 2.0, -1.0), (1, 2, 5)
        tasks = []
        for replica in range(3):
            assert not any(task.done() for task in tasks)
            sent = message(ones(1, gradients[replica]), replica=replica, samples=samples[replica])
            tasks.append(await under_way(shard, sent))
        answers = await asyncio.gather(*tasks)
        mean = sum(g * n for g, n in zip(gradients, samples, strict=True)) / 8
        for answer in answers:
            assert (answer.version, answer.staleness) == (1, 0)
            assert weights_in(answer).item() == pytest.approx(1 - 0.1 * mean, rel=1e-12)
        assert answers[0].held_s > answers[2].held_s >= 0
        facts = await shard.facts()
        assert (facts["version"], facts["pushes"]) == (1, 3)
        assert facts["apply_s"] > 0

    go(program())


def test_nobody_waits_for_one_that_has_left() -> None:
    async def program() -> None:
        shard = await shard_of(ones(1), bound=0)
        await shard.join([0, 1])
        waits = await under_way(shard, message(ones(1)))
        assert not waits.done()
        await shard.leave(1)
        assert (await waits).version == 1

    go(program())


def test_others_may_fetch_while_a_push_is_held_back() -> None:
    async def program() -> None:
        shard = await shard_of(ones(1), bound=0)
        await shard.join([0, 1])
        waits = await under_way(shard, message(ones(1)))
        assert (await shard.fetch(1)).version == 0
        assert not waits.done()
        await shard.push(message(ones(1), replica=1))
        await waits

    go(program())


def test_pushes_of_one_replica_that_are_alike_are_merged_too() -> None:
    """Two with the same weights, of several elements each, that waited too long."""

    async def program() -> None:
        shard = await shard_of(ones(2), bound=1)
        await shard.join([0, 1, 2])
        await shard.push(message(ones(), lr=1.0))
        tasks = [await under_way(shard, message(ones(), replica=0, base=1, lr=1.0))]
        alike = [message(ones(2, 4.0), replica=1, lr=1.0) for _ in range(2)]
        tasks += [await under_way(shard, sent) for sent in alike]
        assert not any(task.done() for task in tasks)
        await shard.leave(2)
        answers = await asyncio.gather(*tasks)
        assert [answer.version for answer in answers] == [2, 2, 2]
        assert [answer.staleness for answer in answers] == [0, 1, 1]
        assert weights_in(answers[0]).tolist() == pytest.approx([0 - (1 + 4 + 4) / 3] * 2)

    go(program())


@pytest.mark.parametrize(("base", "divided_by"), [(6, 1), (5, 1), (4, 2), (2, 4)])
@pytest.mark.parametrize("scaled", [True, False])
def test_a_stale_push_may_count_less(base: int, divided_by: int, scaled: bool) -> None:
    async def program() -> None:
        shard = await shard_of(ones(1), version=6, staleness_scaled=scaled)
        answer = await shard.push(message(ones(1), base=base))
        assert answer.staleness == 6 - base
        step = 0.1 / (divided_by if scaled else 1)
        assert weights_in(answer).item() == pytest.approx(1 - step, rel=1e-12)

    go(program())


def test_a_push_of_weights_that_were_lost_with_a_shard_is_not_stale() -> None:
    async def program() -> None:
        shard = await shard_of(ones(1), version=3)
        answer = await shard.push(message(ones(1), base=9))
        assert (answer.version, answer.staleness) == (4, 0)

    go(program())


def test_bytes_that_travel_are_those_of_the_wire() -> None:
    async def program() -> None:
        shard = await shard_of(torch.full((4,), 1 + 2**-9), wire=parse_wire("bf16"))
        sent = message(torch.full((4,), 1.0), wire="bf16", lr=2**-9)
        answer = await shard.push(sent)
        assert answer.weights is not None
        assert answer.weights.nbytes == 8
        assert weights_in(answer).tolist() == [1.0] * 4
        assert (await shard.snapshot()).weights.dtype == torch.float32

    go(program())


def test_of_a_push_the_largest_are_applied() -> None:
    async def program() -> None:
        shard = await shard_of(ones(4), wire=parse_wire("topk:0.25"))
        gradient = torch.tensor([1.0, -5.0, 2.0, 3.0], dtype=torch.float64)
        answer = await shard.push(message(gradient, wire="topk:0.25"))
        assert weights_in(answer).tolist() == pytest.approx([1, 1.5, 1, 1])

    go(program())


def test_it_serves_until_it_is_told_to_end() -> None:
    async def program() -> None:
        shard = await shard_of(ones())
        serving = asyncio.create_task(shard.serve())
        await asyncio.sleep(0)
        assert not serving.done()
        await shard.end()
        await serving

    go(program())


def test_a_shard_of_one_run_after_another_begins_anew() -> None:
    async def program() -> None:
        shard = await shard_of(ones(1), {"optimizer": "sgd", "momentum": 0.9}, bound=0)
        await shard.join([0, 1])
        await under_way(shard, message(ones(1)))
        await shard.end()
        fresh = await shard_of(ones(3), {"optimizer": "adagrad"})
        await shard.load(fresh._orders)
        serving = asyncio.create_task(shard.serve())
        answer = await shard.push(message(ones(3)))
        expected = await fresh.push(message(ones(3)))
        assert torch.equal(weights_in(answer), weights_in(expected))
        assert (answer.version, (await shard.facts())["pushes"]) == (1, 1)
        assert not serving.done()
        await shard.end()
        await serving

    go(program())


def test_a_push_that_has_been_applied_is_only_answered() -> None:
    async def program() -> None:
        shard = await shard_of(ones(2))
        sent = message(ones(2))
        first = await shard.push(sent)
        again = await shard.push(sent)
        assert (first.version, again.version, again.staleness) == (1, 1, None)
        assert weights_in(again).tolist() == weights_in(first).tolist()
        other = await shard.push(message(ones(2), replica=1, number=sent.number))
        assert other.version == 2

    go(program())


def test_what_one_that_retires_has_not_applied_its_successor_does() -> None:
    """One push of each of two replicas: one is in what it leaves, and one was held back."""

    async def program() -> None:
        shard = await shard_of(ones(2), bound=0)
        await shard.join([0, 1])
        applied = message(ones(2), replica=0)
        held = await under_way(shard, applied)
        await shard.push(message(ones(2), replica=1))
        await held
        waiting = message(ones(2), replica=0, base=1)
        task = await under_way(shard, waiting)
        left = await shard.retire()
        await shard.forget(1)  # nothing waits for it any more, but nothing is applied either
        assert not task.done()
        task.cancel()
        assert left.version == 1
        assert left.applied == {0: applied.number, 1: applied.number + 1}
        successor = await shard_of(left.weights, version=1)
        successor._applied = dict(left.applied)
        known = await successor.push(applied)
        assert known.version == 1
        new = await successor.push(waiting)
        assert new.version == 2

    go(program())
