"""A replica's end of all shards: what goes to each, and what has come back.

    exchange ──▶ [ shard 0: answer? ] [ shard 1: answer? ] ...      returns at once
    settle   ──▶ until at most `depth` exchanges have answers due; the oldest first

A shard that dies is waited for: the fleet starts it again from its last snapshot, and what it has
not answered is sent once more.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError
from torch import nn

from convoy.errors import CrewError
from convoy.runtime.servers.shard import Answer, PushMessage
from convoy.strategies.parameter_shards import Shard, gather, scatter
from convoy.strategies.push_codec import Encoder, Wire, from_array
from convoy.strategies.server import Push

GONE = (RayActorError, ObjectLostError)
PATIENCE_S = 120.0
"""How long a shard may take to be there again."""
LOOK_S = 5.0
"""How often a replica that waits for an answer asks whether the shard still is the one it knows."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A question to one shard that is on its way."""

    reference: Any
    incarnation: int
    """Which of the shard's it was put to."""


@dataclass(kw_only=True)
class Exchange:
    """One message to every shard, and what is to come of it."""

    messages: list[PushMessage | None]
    """By shard; None asks for weights only."""
    calls: list[Call]
    fetch: bool
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
    """`ParameterServer`, over shards that are Ray actors."""

    def __init__(
        self,
        *,
        replica: int,
        coordinator: Any,
        shards: Sequence[Any],
        incarnations: Sequence[int],
        homes: Sequence[int],
        pieces: Sequence[Shard],
        wire: Wire,
        model: nn.Module,
        depth: int,
    ) -> None:
        """Take part as `replica`.

        Args:
            homes: by shard, the rank on whose machine it is.
            pieces: by shard, what it holds.
            depth: exchanges that may be unanswered after `settle`.
        """
        self.depth = depth
        self._replica, self._coordinator = replica, coordinator
        self._shards, self._incarnations = list(shards), list(incarnations)
        self._homes, self._pieces, self._wire = homes, pieces, wire
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._encoders = [Encoder(wire) for _ in pieces]
        self._due: deque[Exchange] = deque()
        self._bases = [0] * len(pieces)
        """By shard: the version of the weights that are in the model."""
        self._oldest: list[int] | None = None
        """Those that what has not been pushed yet began with."""
        self.issued: Exchange | None = None
        """The last one."""
        self.blocked_s = 0.0
        """How long this replica has waited for shards; whoever reads it may set it to 0."""

    def fetch(self) -> None:
        """Have the newest weights in the model. Blocks."""
        started = time.perf_counter()
        calls = [self._ask(index, "fetch", self._replica) for index in range(len(self._shards))]
        for index, call in enumerate(calls):
            self._take_over(index, self._answer(index, call, "fetch", self._replica))
        self._oldest = self._oldest or list(self._bases)
        self.blocked_s += time.perf_counter() - started

    def rest(self) -> None:
        """Tell all shards that nothing is being computed here for now."""
        ray.wait(
            [s.leave.remote(self._replica) for s in self._shards], num_returns=len(self._shards)
        )

    def exchange(self, push: Push | None, *, fetch: bool) -> None:
        """Send a push, and ask for the weights after it. Returns at once."""
        started = time.perf_counter()
        messages: list[PushMessage | None] = []
        sent_to: Counter[int] = Counter()
        bases = self._oldest or self._bases
        for index, pieces in enumerate(self._pieces):
            if push is None:
                messages.append(None)
                continue
            arrays = self._encoders[index](gather(push.gradients, pieces))
            sent_to[self._homes[index]] += sum(array.nbytes for array in arrays)
            messages.append(
                PushMessage(
                    replica=self._replica,
                    base=bases[index],
                    holds=() if fetch else (self._bases[index],),
                    samples=push.samples,
                    lr=push.lr,
                    arrays=arrays,
                    fetch=fetch,
                )
            )
        calls = [self._ask(i, *self._question(message)) for i, message in enumerate(messages)]
        self.issued = Exchange(messages=messages, calls=calls, fetch=fetch, sent_to=sent_to)
        self._due.append(self.issued)
        if push is not None:
            self._oldest = None
        self.blocked_s += time.perf_counter() - started

    def settle(self) -> None:
        """Wait until no more than `depth` exchanges are unanswered; take over what has come."""
        started = time.perf_counter()
        while len(self._due) > self.depth or (self._due and self._has_come(self._due[0])):
            exchange = self._due.popleft()
            for index, message in enumerate(exchange.messages):
                question = self._question(message)
                answer = self._answer(index, exchange.calls[index], *question)
                if answer.weights is not None:
                    exchange.received_from[self._homes[index]] += answer.weights.nbytes
                    self._take_over(index, answer)
                exchange.answers.append(answer)
        self._oldest = self._oldest or list(self._bases)
        self.blocked_s += time.perf_counter() - started

    def finish(self) -> None:
        """Wait until every exchange is answered."""
        depth, self.depth = self.depth, 0
        self.settle()
        self.depth = depth

    @staticmethod
    def _has_come(exchange: Exchange) -> bool:
        references = [call.reference for call in exchange.calls]
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        return len(ready) == len(references)

    def _question(self, message: PushMessage | None) -> tuple[str, Any]:
        return ("refetch", self._replica) if message is None else ("push", message)

    def _ask(self, index: int, method: str, argument: Any) -> Call:
        reference = getattr(self._shards[index], method).remote(argument)
        return Call(reference=reference, incarnation=self._incarnations[index])

    def _answer(self, index: int, call: Call, method: str, argument: Any) -> Answer:
        """The shard's answer; of a shard that has died, its successor's to the same question."""
        waited_since = time.monotonic()
        while True:
            try:
                answer: Answer = ray.get(call.reference, timeout=LOOK_S)
                return answer
            except GetTimeoutError:
                if time.monotonic() - waited_since > PATIENCE_S:
                    raise CrewError(
                        f"shard {index} of the parameters has not answered replica "
                        f"{self._replica} for {PATIENCE_S:.0f} s"
                    ) from None
            except GONE:
                if call.incarnation == self._incarnations[index]:
                    self._find_successor(index)
                call = self._ask(index, method, argument)

    def _find_successor(self, index: int) -> None:
        call = self._coordinator.shard_after.remote(index, self._incarnations[index])
        try:
            found = ray.get(call, timeout=PATIENCE_S)
        except GetTimeoutError:
            raise CrewError(
                f"shard {index} of the parameters died, and was not there again within "
                f"{PATIENCE_S:.0f} s"
            ) from None
        self._shards[index], self._incarnations[index] = found

    @torch.no_grad()
    def _take_over(self, index: int, answer: Answer) -> None:
        assert answer.weights is not None
        dtype = next(iter(self._parameters.values())).dtype
        scatter(from_array(answer.weights, dtype), self._parameters, self._pieces[index])
        self._bases[index] = answer.version
