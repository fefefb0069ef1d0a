"""A replica's end of real shards, which listen on sockets in a thread beside it. Without Ray."""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import pytest
import torch
import zmq
import zmq.asyncio
import zmq.utils.garbage
from torch import Tensor, nn

from convoy.errors import CrewError, DivergedError
from convoy.runtime.servers import client as client_module
from convoy.runtime.servers.client import ShardClient
from convoy.runtime.servers.messages import (
    Answer,
    PushMessage,
    Request,
    Whereabouts,
    pack_request,
    read_answer,
)
from convoy.runtime.servers.shard import Shard, ShardOrders, ShardState
from convoy.runtime.settings import TrainSettings
from convoy.strategies.parameter_shards import Pieces, divide, gather
from convoy.strategies.push_codec import Encoder, parse_wire
from convoy.strategies.server import Push, ServerTerms

Result = TypeVar("Result")
SOON_S = 20.0
SESSION = "this run"
LR = 0.25


class WatchedShard(Shard):
    """A shard that notes what arrives, and lets it in when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived: list[PushMessage] = []
        self._news = asyncio.Condition()
        self._open = asyncio.Semaphore(10**6)
        self._muted = False

    async def push(self, message: PushMessage) -> Answer:
        async with self._news:
            self.arrived.append(message)
            self._news.notify_all()
        await self._open.acquire()
        answer = await super().push(message)
        if self._muted:
            await asyncio.Event().wait()
        return answer

    async def mute(self) -> None:
        """Apply what comes, and answer no push any more."""
        self._muted = True

    async def unmute(self) -> None:
        """Answer again, but not what came before."""
        self._muted = False

    async def shut(self) -> None:
        """Let no push in, until `let_in`."""
        self._open = asyncio.Semaphore(0)

    async def let_in(self, count: int) -> None:
        """Let so many more in, the first ones first."""
        for _ in range(count):
            self._open.release()

    async def until(self, count: int) -> None:
        """Wait until so many pushes have arrived."""
        async with self._news:
            await self._news.wait_for(lambda: len(self.arrived) >= count)

    async def die(self) -> None:
        """Answer nothing any more, and close the line."""
        if self._socket is not None:
            self._socket.close(linger=0)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Servers:
    """A loop in a thread, with shards on it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.shards: list[WatchedShard] = []

    def call(self, program: Coroutine[Any, Any, Result]) -> Result:
        """What `program` returns on the loop."""
        return asyncio.run_coroutine_threadsafe(program, self._loop).result(SOON_S)

    def start(self, weights: Tensor, *, version: int = 0, **terms: Any) -> tuple[WatchedShard, str]:
        """A shard that applies plain SGD, and where it listens."""

        async def make() -> tuple[WatchedShard, str]:
            shard = WatchedShard()
            self.shards.append(shard)
            return shard, await shard.load(orders(weights, version=version, **terms))

        return self.call(make())

    def close(self) -> None:
        """End all of it."""
        for shard in self.shards:
            self.call(shard.die())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SOON_S)
        assert not self._thread.is_alive()
        self._loop.close()


class Directory:
    """Knows where shards are; `then` happens when it is asked."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self.endpoints, self.incarnations = list(endpoints), [0] * len(endpoints)
        self.homes = [0] * len(endpoints)
        self.asked = 0
        self.then: Callable[[], Any] = lambda: None

    def __call__(self) -> Whereabouts:
        self.asked += 1
        self.then()
        return self.where()

    def where(self) -> Whereabouts:
        """As they are now."""
        return Whereabouts(
            endpoints=tuple(self.endpoints),
            incarnations=tuple(self.incarnations),
            homes=tuple(self.homes),
        )


def orders(
    weights: Tensor, *, version: int = 0, session: str = SESSION, **terms: Any
) -> ShardOrders:
    given: dict[str, Any] = {
        "bound": None,
        "staleness_scaled": False,
        "depth": 0,
        "deepens": False,
        "window": 1,
    }
    given |= {"wire": parse_wire("fp32"), "warm_start": 0, "snapshot_s": 30}
    return ShardOrders(
        index=0,
        session=session,
        address="127.0.0.1",
        settings=TrainSettings(optimizer="sgd", momentum=0.0),
        terms=ServerTerms(**(given | terms)),
        state=ShardState(version=version, weights=weights),
    )


def _ends(context: zmq.Context[Any]) -> bool:
    """Whether a context ends, as it does once no socket of it is open."""
    thread = threading.Thread(target=context.term, daemon=True)
    thread.start()
    thread.join(SOON_S)
    return not thread.is_alive()


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch, no_thread_left: None) -> Iterator[Servers]:
    """Shards in a thread. Fails a test that leaves a socket or a thread behind."""
    monkeypatch.setattr(client_module, "LOOK_S", 0.02)
    monkeypatch.setattr(client_module, "LINGER_MS", 100)
    monkeypatch.setattr(client_module, "PATIENCE_S", SOON_S)
    threads = torch.get_num_threads()
    found = Servers()
    try:
        yield found
    finally:
        found.close()
        assert _ends(zmq.Context.instance())
        assert _ends(zmq.asyncio.Context.instance())
        zmq.utils.garbage.gc.stop()  # what pyzmq starts for large arrays
        torch.set_num_threads(threads)


class Setting:
    """A network, shards that hold its parameters, and a replica's end of them."""

    def __init__(
        self,
        servers: Servers,
        model: nn.Module,
        *,
        num_shards: int = 1,
        homes: Sequence[int] = (),
        depth: int = 0,
        wire: str = "fp32",
        version: int = 0,
        **terms: Any,
    ) -> None:
        self.servers, self.model = servers, model
        self.trained = dict(model.named_parameters())
        shapes = {name: tuple(p.shape) for name, p in self.trained.items()}
        self.pieces: tuple[Pieces, ...] = divide(shapes, num_shards)
        terms |= {"wire": parse_wire(wire)}
        started = [
            servers.start(gather(self.trained, piece), version=version, **terms)
            for piece in self.pieces
        ]
        self.shards = [shard for shard, _ in started]
        self.endpoints = [endpoint for _, endpoint in started]
        self.directory = Directory(self.endpoints)
        self.directory.homes = list(homes or [0] * num_shards)
        self.client = ShardClient(
            replica=0,
            session=SESSION,
            look_up=self.directory,
            where=self.directory.where(),
            pieces=self.pieces,
            wire=parse_wire(wire),
            model=model,
            depth=depth,
        )

    def __enter__(self) -> Setting:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def weights(self) -> list[float]:
        """All parameters of the network, one after another."""
        return torch.cat([p.detach().reshape(-1) for p in self.trained.values()]).tolist()

    def others_push(self, count: int = 1) -> None:
        """Another replica pushes zeros: versions rise, and weights stay."""
        for _ in range(count):
            for shard, pieces in zip(self.shards, self.pieces, strict=True):
                size = sum(piece.elements for piece in pieces)
                self.servers.call(Shard.push(shard, message(torch.zeros(size).double())))

    def replace(self, index: int, version: int) -> WatchedShard:
        """A shard dies, and is started again elsewhere with zeros as of `version`."""
        self.servers.call(self.shards[index].die())
        size = sum(piece.elements for piece in self.pieces[index])
        successor, endpoint = self.servers.start(torch.zeros(size).double(), version=version)
        self.directory.endpoints[index] = endpoint
        self.directory.incarnations[index] += 1
        self.shards[index] = successor
        return successor


NUMBERS = itertools.count(1)


def message(gradient: Tensor, **changes: Any) -> PushMessage:
    values: dict[str, Any] = {"replica": 1, "number": next(NUMBERS), "base": 0, "holds": ()}
    values |= {"samples": 1, "lr": LR}
    values |= {"arrays": Encoder(parse_wire("fp32"))(gradient), "fetch": True}
    return PushMessage(**(values | changes))


def scalar(value: float = 1.0) -> nn.Module:
    """A network of one parameter."""
    return nn.ParameterDict({"w": nn.Parameter(torch.full((1,), value, dtype=torch.float64))})


def rows(count: int = 6, width: int = 2) -> nn.Module:
    """A network of one matrix, which shards cut by rows, with 0, 1, 2, ... in it."""
    values = torch.arange(float(count * width), dtype=torch.float64).reshape(count, width)
    return nn.ParameterDict({"w": nn.Parameter(values)})


def push_of(model: nn.Module, value: float = 1.0, samples: int = 1) -> Push:
    gradients = {n: torch.full_like(p, value).detach() for n, p in model.named_parameters()}
    return Push(gradients=gradients, samples=samples, lr=LR)


# Fetching and pushing


def test_what_is_fetched_is_in_the_model(servers: Servers) -> None:
    model = rows()
    with Setting(servers, model, num_shards=3, version=4) as here:
        expected = here.weights()
        with torch.no_grad():
            model.w.zero_()
        here.client.fetch()
        assert here.weights() == expected
        here.client.exchange(push_of(model), fetch=False)
        here.client.finish()
        assert [shard.arrived[0].base for shard in here.shards] == [4, 4, 4]


def test_a_push_is_answered_with_what_came_of_it(servers: Servers) -> None:
    model = rows()
    with Setting(servers, model, num_shards=2) as here:
        here.client.fetch()
        here.client.exchange(push_of(model, 2.0, samples=7), fetch=True)
        here.client.settle()
        issued = here.client.issued
        assert issued is not None
        assert here.weights() == [value - LR * 2.0 for value in range(12)]
        assert [a.version for a in issued.answers] == [1, 1]
        assert issued.staleness == 0
        arrived = [shard.arrived[0] for shard in here.shards]
        assert [(m.replica, m.samples, m.lr, m.fetch) for m in arrived] == [(0, 7, LR, True)] * 2


def test_without_fetching_the_model_stays_as_it_is(servers: Servers) -> None:
    model = scalar()
    with Setting(servers, model) as here:
        here.client.fetch()
        here.client.exchange(push_of(model), fetch=False)
        here.client.finish()
        assert here.weights() == [1.0]
        here.client.exchange(None, fetch=True)
        here.client.finish()
        assert here.weights() == [1.0 - LR]


def test_staleness_is_that_of_the_shard_where_it_is_greatest(servers: Servers) -> None:
    model = rows()
    with Setting(servers, model, num_shards=2) as here:
        here.client.fetch()
        here.others_push(2)
        size = here.pieces[1][0].elements
        servers.call(Shard.push(here.shards[1], message(torch.zeros(size).double())))
        here.client.exchange(push_of(model), fetch=True)
        here.client.finish()
        issued = here.client.issued
        assert issued is not None
        assert [a.staleness for a in issued.answers] == [2, 3]
        assert issued.staleness == 3


@pytest.mark.parametrize(
    ("wire", "pushed", "fetched"),
    [("fp32", 8, 8), ("bf16", 2, 2), ("topk:0.5", 0.5 * (4 + 8), 8)],
)
def test_bytes_are_counted_by_where_shards_are(
    servers: Servers, wire: str, pushed: float, fetched: float
) -> None:
    """Three shards of two rows of two, two of them on one machine."""
    model = rows()
    with Setting(servers, model, num_shards=3, homes=(5, 1, 5), wire=wire) as here:
        here.client.fetch()
        here.client.exchange(push_of(model), fetch=True)
        here.client.settle()
        issued = here.client.issued
        assert issued is not None
        assert issued.sent_to == Counter({5: 8 * pushed, 1: 4 * pushed})
        assert issued.received_from == Counter({5: 8 * fetched, 1: 4 * fetched})
        here.client.exchange(push_of(model), fetch=False)
        here.client.finish()
        assert here.client.issued is not None
        assert here.client.issued.received_from == Counter()


def test_a_gradient_may_change_once_it_is_on_its_way(servers: Servers) -> None:
    """Large arrays are sent from where they are, and not copied by ZeroMQ."""
    model = rows(300, 200)
    with Setting(servers, model, num_shards=2) as here:
        here.client.fetch()
        push = push_of(model, 4.0)
        here.client.exchange(push, fetch=True)
        push.gradients["w"].zero_()
        here.client.finish()
        assert here.weights() == [value - LR * 4.0 for value in range(60_000)]


# How many may be unanswered


def test_at_depth_0_every_answer_is_waited_for(servers: Servers) -> None:
    model = scalar()
    with Setting(servers, model) as here:
        here.client.fetch()
        servers.call(here.shards[0].shut())
        here.directory.then = lambda: servers.call(here.shards[0].let_in(1))
        here.client.blocked_s = 0.0
        here.client.exchange(push_of(model), fetch=True)
        here.client.settle()
        assert here.directory.asked >= 1  # asked by whoever waits
        assert here.client.issued is not None
        assert here.client.issued.is_answered
        assert here.weights() == [1.0 - LR]
        assert here.client.blocked_s > 0


def test_at_depth_1_the_answer_before_the_last_is_waited_for(servers: Servers) -> None:
    model = scalar()
    with Setting(servers, model, depth=1) as here:
        client, shard = here.client, here.shards[0]
        client.fetch()
        servers.call(shard.shut())
        client.exchange(push_of(model), fetch=True)
        client.settle()
        first = client.issued
        assert first is not None
        assert (first.is_answered, here.directory.asked) == (False, 0)
        assert here.weights() == [1.0]
        here.directory.then = lambda: servers.call(shard.let_in(here.directory.asked == 1))
        client.exchange(push_of(model), fetch=True)
        client.settle()
        second = client.issued
        assert second is not None
        assert (first.is_answered, second.is_answered) == (True, False)
        assert here.weights() == [1.0 - LR]
        servers.call(shard.let_in(1))
        client.finish()
        assert second.is_answered
        assert here.weights() == [1.0 - 2 * LR]
        assert [m.base for m in shard.arrived] == [0, 0]
        assert [first.staleness, second.staleness] == [0, 1]


def test_finishing_leaves_the_depth_as_it_was(servers: Servers) -> None:
    model = scalar()
    with Setting(servers, model, depth=1) as here:
        here.client.fetch()
        here.client.exchange(push_of(model), fetch=True)
        here.client.finish()
        assert here.client.depth == 1
        assert here.client.issued is not None
        assert here.client.issued.is_answered


# Of which weights a push is


def test_a_push_of_several_steps_is_of_the_weights_that_they_began_with(servers: Servers) -> None:
    """Fetched after every step, pushed after every third; others push meanwhile."""
    model = scalar()
    with Setting(servers, model) as here:
        client, shard = here.client, here.shards[0]
        client.fetch()
        for _ in range(2):
            for step in range(3):
                here.others_push()
                client.exchange(push_of(model) if step == 2 else None, fetch=True)
                client.settle()
        assert [(m.base, m.holds) for m in shard.arrived] == [(0, ()), (4, ())]
        assert client.issued is not None
        assert client.issued.staleness == 3  # three of others, and none of its own


def test_what_is_not_fetched_with_a_push_is_computed_with_afterwards(servers: Servers) -> None:
    """Fetched after every second step, pushed after every third."""
    model = scalar()
    with Setting(servers, model) as here:
        client, shard = here.client, here.shards[0]
        client.fetch()
        for step in range(1, 7):
            here.others_push()
            if step % 3 == 0:
                client.exchange(push_of(model), fetch=step % 2 == 0)
            elif step % 2 == 0:
                client.exchange(None, fetch=True)
            client.settle()
        # version 2 came with step 2; the push of step 3 is version 4, that of step 6 is 8
        assert [(m.base, m.holds) for m in shard.arrived] == [(0, (2,)), (2, ())]


@pytest.mark.parametrize("bound", [None, 0])
def test_a_push_after_a_rest_is_of_what_was_fetched_then(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, bound: int | None
) -> None:
    """Under a bound the gate would otherwise wait for the very replica whose push it holds."""
    monkeypatch.setattr(client_module, "PATIENCE_S", 0.5)
    model = scalar()
    with Setting(servers, model, bound=bound) as here:
        client, shard = here.client, here.shards[0]
        client.fetch()
        client.exchange(push_of(model), fetch=True)
        client.settle()
        client.rest()
        here.others_push(5)
        client.fetch()
        client.exchange(push_of(model), fetch=True)
        client.settle()
        assert [m.base for m in shard.arrived] == [0, 6]
        assert client.issued is not None
        assert client.issued.staleness == 0


def test_nobody_waits_for_a_replica_that_rests(servers: Servers) -> None:
    model = scalar()
    with Setting(servers, model, bound=0) as here:
        shard = here.shards[0]
        servers.call(shard.join([0, 1]))
        here.client.fetch()
        here.client.rest()
        here.client.close()  # what was said last still arrives
        answer = servers.call(Shard.push(shard, message(torch.ones(1).double())))
        assert answer.version == 1


# Shards that die


@pytest.mark.parametrize("depth", [0, 1])
def test_what_a_dead_shard_has_not_answered_is_sent_once_more(servers: Servers, depth: int) -> None:
    """The first of two shards dies with everything unanswered; the other goes on."""
    model = rows()
    with Setting(servers, model, num_shards=2, depth=depth) as here:
        client = here.client
        client.fetch()
        for shard in here.shards:
            servers.call(shard.shut())
        for number in range(depth + 1):
            client.exchange(push_of(model, number + 1.0), fetch=True)
        for shard in here.shards:
            servers.call(shard.until(depth + 1))
        other = here.shards[1]
        successor = here.replace(0, version=7)
        servers.call(other.let_in(depth + 2))
        client.finish()
        assert [m.arrays[0][0] for m in successor.arrived] == [1.0, 2.0][: depth + 1]
        assert len(other.arrived) == depth + 1
        assert client.issued is not None
        assert [a.version for a in client.issued.answers] == [7 + depth + 1, depth + 1]
        pushed = sum(range(1, depth + 2))
        expected = [-LR * pushed] * 6 + [value - LR * pushed for value in range(6, 12)]
        assert here.weights() == expected
        # and the next goes to the successor at once, as of what came from it
        client.exchange(push_of(model), fetch=True)
        client.finish()
        assert len(successor.arrived) == depth + 2
        assert successor.arrived[-1].base == 7 + depth + 1
        assert here.directory.asked >= 1


def test_pushes_stay_in_their_order_when_a_shard_is_replaced(servers: Servers) -> None:
    """Two are unanswered when it dies; one more follows before the second is waited for."""
    model = scalar()
    with Setting(servers, model, depth=1) as here:
        client = here.client
        client.fetch()
        servers.call(here.shards[0].shut())
        for number in range(2):
            client.exchange(push_of(model, number + 1.0), fetch=True)
        servers.call(here.shards[0].until(2))
        successor = here.replace(0, version=7)
        client.settle()
        client.exchange(push_of(model, 3.0), fetch=True)
        client.finish()
        assert [m.arrays[0][0] for m in successor.arrived] == [1.0, 2.0, 3.0]
        assert here.weights() == [-LR * (1 + 2 + 3)]


def test_a_shard_that_moves_loses_nothing_and_does_nothing_twice(servers: Servers) -> None:
    """One push has been applied, but its answer is lost; another has not been."""
    model = scalar(0.0)
    with Setting(servers, model, depth=1, homes=[2]) as here:
        client = here.client
        client.fetch()
        shard = here.shards[0]
        servers.call(shard.mute())
        client.exchange(push_of(model, 1.0), fetch=True)
        servers.call(shard.until(1))
        servers.call(shard.shut())
        client.exchange(push_of(model, 2.0), fetch=True)
        servers.call(shard.until(2))
        left = servers.call(shard.retire())
        successor, endpoint = servers.start(left.weights, version=left.version)
        successor._applied = dict(left.applied)
        here.directory.endpoints[0], here.directory.homes[0] = endpoint, 5
        here.directory.incarnations[0] += 1
        here.shards[0] = successor
        client.finish()
        assert here.weights() == pytest.approx([-LR * (1 + 2)])
        assert servers.call(Shard.facts(successor))["version"] == 2
        assert client.issued is not None
        assert set(client.issued.received_from) == {5}


def test_fetching_waits_for_a_successor_too(servers: Servers) -> None:
    model = scalar()
    with Setting(servers, model) as here:
        here.replace(0, version=3)
        here.client.fetch()
        assert here.weights() == [0.0]


def test_a_shard_that_never_answers_is_named(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PATIENCE_S", 0.05)
    model = scalar()
    with Setting(servers, model) as here:
        servers.call(here.shards[0].die())
        with pytest.raises(CrewError, match=rf"shard 0 .*{here.endpoints[0]}.* replica 0"):
            here.client.fetch()


# Runs one after another


def test_what_is_left_of_another_run_is_not_answered(servers: Servers) -> None:
    """A shard of a run before serves the next one at the same port."""
    weights = torch.ones(1).double()
    shard, endpoint = servers.start(weights)
    assert servers.call(shard.load(orders(weights * 2, session="next run"))) == endpoint
    with zmq.Context.instance().socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(endpoint)
        stale = message(weights)
        left = Request(kind="push", session=SESSION, ticket=1, replica=1, push=stale)
        socket.send_multipart(pack_request(left))
        asked = Request(kind="fetch", session="next run", ticket=2, replica=0)
        socket.send_multipart(pack_request(asked))
        assert socket.poll(int(SOON_S * 1000))
        ticket, answer = read_answer(socket.recv_multipart())
        assert (ticket, answer.version) == (2, 0)
        assert answer.weights is not None
        assert answer.weights.tolist() == [2.0]
        assert not socket.poll(0)
    assert shard.arrived == []


# Connections that are lost while both their ends live


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that soon asks once more."""
    monkeypatch.setattr(client_module, "LOOK_S", 0.05)
    monkeypatch.setattr(client_module, "RESEND_S", 0.3)


def test_an_answer_that_was_lost_is_given_again(servers: Servers, impatient: None) -> None:
    """The push is applied once."""
    model = scalar()
    with Setting(servers, model) as here:
        (shard,) = here.shards
        here.client.fetch()
        servers.call(shard.mute())
        here.client.exchange(push_of(model), fetch=True)
        servers.call(shard.until(1))
        servers.call(shard.unmute())
        here.client.finish()
        assert len(shard.arrived) == 2
        assert servers.call(shard.facts())["pushes"] == 1
        assert here.weights() == [1.0 - LR]
        here.client.exchange(push_of(model), fetch=True)
        here.client.finish()
        assert here.weights() == [1.0 - 2 * LR]


def test_a_push_that_waits_at_the_gate_may_be_sent_again(servers: Servers, impatient: None) -> None:
    """It is one push of the update that it waits for."""
    model = scalar()
    with Setting(servers, model, bound=0) as here:
        (shard,) = here.shards
        here.client.fetch()
        servers.call(shard.fetch(1))
        here.client.exchange(push_of(model), fetch=True)
        waiting = threading.Thread(target=here.client.finish)
        waiting.start()
        servers.call(shard.until(2))
        servers.call(Shard.push(shard, message(torch.zeros(1).double())))
        waiting.join(SOON_S)
        assert not waiting.is_alive()
        facts = servers.call(shard.facts())
        assert (facts["pushes"], facts["version"]) == (2, 1)
        assert here.weights() == [1.0 - LR / 2]  # the mean of both


def test_a_gradient_that_is_not_finite_goes_nowhere(servers: Servers) -> None:
    model = scalar()
    with Setting(servers, model) as here:
        here.client.fetch()
        with pytest.raises(DivergedError, match="gradient of replica 0 is not finite. Try a lower"):
            here.client.exchange(push_of(model, math.nan), fetch=True)
        assert here.shards[0].arrived == []


def test_the_newest_versions_are_known(servers: Servers) -> None:
    """Of each shard, also while another has not answered yet."""
    model = rows()
    with Setting(servers, model, num_shards=2, version=3) as here:
        here.client.fetch()
        assert here.client.newest == [(0, 3), (0, 3)]
        servers.call(here.shards[1].shut())
        here.client.exchange(push_of(model), fetch=True)
        servers.call(here.shards[1].until(1))
        waiting = threading.Thread(target=here.client.finish)
        waiting.start()
        while here.client.newest[0] == (0, 3):
            time.sleep(0.01)
        assert here.client.newest == [(0, 4), (0, 3)]
        servers.call(here.shards[1].let_in(1))
        waiting.join(SOON_S)
        assert here.client.newest == [(0, 4), (0, 4)]
