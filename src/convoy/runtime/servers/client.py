"""A replica's end of all shards: what goes to each, and what has come back.

    exchange ──▶ [ shard 0: answer? ] [ shard 1: answer? ] ...      returns at once
    settle   ──▶ until at most `depth` exchanges have answers due; the oldest first

A shard that dies is waited for: the fleet starts it again from its last snapshot, and what it has
not answered is sent once more. So it is with one that moves to another machine.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import zmq
from torch import nn

from convoy.errors import CrewError, DivergedError
from convoy.runtime.servers.messages import (
    Answer,
    Kind,
    PushMessage,
    Request,
    Whereabouts,
    pack_request,
    read_answer,
)
from convoy.strategies.parameter_shards import Pieces, gather, scatter
from convoy.strategies.push_codec import Encoder, Wire, from_array
from convoy.strategies.server import Push

PATIENCE_S = 120.0
"""How long a shard may take to be there again, and"""
HELD_PATIENCE_S = 3600.0
"""to answer a push that a bound on staleness may hold back, while others judge or are slow."""
LOOK_S = 0.5
"""How often a replica that waits for an answer asks whether the shard still is the one it knows."""
RESEND_S = 20.0
"""After so long without an answer it is asked for once more, and then after twice as long again: a
connection may be lost while both its ends live, and what was on its way with it."""
LINGER_MS = 1000
"""How long what was sent last may take to be gone."""


@dataclass(kw_only=True)
class Call:
    """A question to one shard that is on its way."""

    ticket: int
    request: Request
    incarnation: int
    """Which of the shard's it was put to last."""


@dataclass(kw_only=True)
class Exchange:
    """One message to every shard, and what is to come of it."""

    calls: list[Call]
    sent_to: Counter[int] = field(default_factory=Counter)
    """Bytes, by the rank on whose machine they went."""
    received_from: Counter[int] = field(default_factory=Counter)
    answers: list[Answer] = field(default_factory=list)

    @property
    def is_answered(self) -> bool:
        """Whether all shards have."""
        return len(self.answers) == len(self.calls)

    @property
    def staleness(self) -> int | None:
        """Of a push: how far it was behind on the shard where it was furthest."""
        known = [a.staleness for a in self.answers if a.staleness is not None]
        return max(known, default=None)


class ShardClient:
    """`ParameterServer`, over shards that listen on sockets. Of one thread."""

    def __init__(
        self,
        *,
        replica: int,
        session: str,
        look_up: Callable[[], Whereabouts],
        where: Whereabouts,
        pieces: Sequence[Pieces],
        wire: Wire,
        model: nn.Module,
        depth: int,
        patience_s: float | None = None,
    ) -> None:
        """Take part as `replica`.

        Args:
            session: the run, which shards tell from others.
            look_up: where shards are now.
            where: where they are at first.
            pieces: by shard, what it holds.
            depth: exchanges that may be unanswered after `settle`.
            patience_s: how long an answer may take; `PATIENCE_S` if None.
        """
        self.depth = depth
        self._patience_s = PATIENCE_S if patience_s is None else patience_s
        self._replica, self._session, self._look_up = replica, session, look_up
        self._where, self._pieces, self._wire = where, pieces, wire
        self._pushed = [0] * len(pieces)
        """By shard: how many pushes have gone there."""
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._encoders = [Encoder(wire) for _ in pieces]
        self._sockets = [self._connected(endpoint) for endpoint in where.endpoints]
        self._tickets = itertools.count()
        self._come: dict[int, Answer] = {}
        """Answers that have come, by ticket."""
        self._outstanding: list[list[Call]] = [[] for _ in pieces]
        """By shard: questions whose answers have not been taken yet, the oldest first."""
        self._due: deque[Exchange] = deque()
        self._bases = [0] * len(pieces)
        """By shard: the version of the weights that are in the model."""
        self._oldest: list[int] | None = None
        """Those that what has not been pushed yet began with."""
        self.issued: Exchange | None = None
        """The last one."""
        self.newest = [(incarnation, 0) for incarnation in where.incarnations]
        """By shard: the newest version that an answer has told of, and whose."""
        self.blocked_s = 0.0
        """How long this replica has waited for shards; whoever reads it may set it to 0."""

    def close(self) -> None:
        """Let go of the sockets."""
        for socket in self._sockets:
            socket.close(linger=LINGER_MS)

    def fetch(self) -> None:
        """Have the newest weights in the model. Blocks."""
        started = time.perf_counter()
        calls = [self._ask(index, "fetch") for index in range(len(self._pieces))]
        for index, call in enumerate(calls):
            self._take_over(index, self._answer(index, call))
        self._oldest = list(self._bases)
        self.blocked_s += time.perf_counter() - started

    def rest(self) -> None:
        """Tell all shards that nothing is being computed here for now."""
        self._look_for_successors()
        for index in range(len(self._pieces)):
            self._ask(index, "leave")

    def exchange(self, push: Push | None, *, fetch: bool) -> None:
        """Send a push, and ask for the weights after it. Returns at once.

        Raises:
            DivergedError: a gradient is not finite; nothing of it is sent to that shard.
        """
        started = time.perf_counter()
        sent_to: Counter[int] = Counter()
        bases = self._oldest or self._bases
        calls = []
        for index, pieces in enumerate(self._pieces):
            if push is None:
                calls.append(self._ask(index, "refetch"))
                continue
            gradient = gather(push.gradients, pieces)
            if not math.isfinite(gradient.sum()):
                raise DivergedError(
                    f"a gradient of replica {self._replica} is not finite. Try a lower --lr, or a "
                    "bound on staleness (--max-staleness)"
                )
            arrays = self._encoders[index](gradient)
            sent_to[self._where.homes[index]] += sum(array.nbytes for array in arrays)
            self._pushed[index] += 1
            message = PushMessage(
                replica=self._replica,
                number=self._pushed[index],
                base=bases[index],
                holds=() if fetch else (self._bases[index],),
                samples=push.samples,
                lr=push.lr,
                arrays=arrays,
                fetch=fetch,
            )
            calls.append(self._ask(index, "push", message))
        self.issued = Exchange(calls=calls, sent_to=sent_to)
        self._due.append(self.issued)
        if push is not None:
            self._oldest = None
        self.blocked_s += time.perf_counter() - started

    def settle(self) -> None:
        """Wait until no more than `depth` exchanges are unanswered; take over what has come."""
        started = time.perf_counter()
        while len(self._due) > self.depth or (self._due and self._has_come(self._due[0])):
            exchange = self._due.popleft()
            for index, call in enumerate(exchange.calls):
                answer = self._answer(index, call)
                if answer.weights is not None:
                    exchange.received_from[self._where.homes[index]] += answer.weights.nbytes
                    self._take_over(index, answer)
                exchange.answers.append(answer)
        self._oldest = self._oldest or list(self._bases)
        self.blocked_s += time.perf_counter() - started

    def finish(self) -> None:
        """Wait until every exchange is answered."""
        depth, self.depth = self.depth, 0
        self.settle()
        self.depth = depth

    def _has_come(self, exchange: Exchange) -> bool:
        for index in range(len(self._pieces)):
            self._collect(index, 0)
        return all(call.ticket in self._come for call in exchange.calls)

    def _ask(self, index: int, kind: Kind, push: PushMessage | None = None) -> Call:
        ticket = next(self._tickets)
        request = Request(
            kind=kind, session=self._session, ticket=ticket, replica=self._replica, push=push
        )
        self._sockets[index].send_multipart(pack_request(request), copy=False)
        call = Call(ticket=ticket, request=request, incarnation=self._where.incarnations[index])
        if kind != "leave":  # which nobody answers
            self._outstanding[index].append(call)
        return call

    def _answer(self, index: int, call: Call) -> Answer:
        """The shard's answer; of a shard that has died, its successor's to the same question."""
        now = time.monotonic()
        deadline, again_s = now + self._patience_s, RESEND_S
        again = now + again_s
        while call.ticket not in self._come:
            if self._collect(index, LOOK_S):
                continue
            if self._look_for_successors():
                deadline = time.monotonic() + self._patience_s
            elif time.monotonic() > deadline:
                raise CrewError(
                    f"shard {index} of the parameters ({self._where.endpoints[index]}) has not "
                    f"answered replica {self._replica} for {self._patience_s:.0f} s"
                )
            elif time.monotonic() > again:
                again_s *= 2
                again = time.monotonic() + again_s
                self._ask_again(index)
        self._outstanding[index].remove(call)
        return self._come.pop(call.ticket)

    def _collect(self, index: int, patience_s: float) -> bool:
        """Take in one answer of a shard; False if none comes."""
        socket = self._sockets[index]
        if not socket.poll(int(patience_s * 1000)):
            return False
        frames = socket.recv_multipart(copy=False)
        ticket, answer = read_answer([frame.buffer for frame in frames])
        self._come[ticket] = answer
        known = (self._where.incarnations[index], answer.version)
        self.newest[index] = max(self.newest[index], known)
        return True

    def _look_for_successors(self) -> bool:
        """Turn to shards that have been started again, with all that they have not answered.

        False if none has been.
        """
        before, self._where = self._where, self._look_up()
        pairs = zip(before.incarnations, self._where.incarnations, strict=True)
        successors = [index for index, (old, new) in enumerate(pairs) if new > old]
        for index in successors:
            self._ask_again(index)
        return bool(successors)

    def _ask_again(self, index: int) -> None:
        """Over a new connection, all that a shard has not answered. Questions keep their order."""
        self._sockets[index].close(linger=0)
        self._sockets[index] = self._connected(self._where.endpoints[index])
        unanswered, self._outstanding[index] = self._outstanding[index], []
        for call in unanswered:
            if call.ticket in self._come:  # it has come, and is yet to be taken
                self._outstanding[index].append(call)
                continue
            again = self._ask(index, call.request.kind, call.request.push)
            call.ticket, call.incarnation = again.ticket, again.incarnation
            self._outstanding[index][-1] = call

    @staticmethod
    def _connected(endpoint: str) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        socket.setsockopt(zmq.IPV6, "[" in endpoint)
        socket.connect(endpoint)
        return socket

    @torch.no_grad()
    def _take_over(self, index: int, answer: Answer) -> None:
        assert answer.weights is not None
        dtype = next(iter(self._parameters.values())).dtype
        scatter(from_array(answer.weights, dtype), self._parameters, self._pieces[index])
        self._bases[index] = answer.version
