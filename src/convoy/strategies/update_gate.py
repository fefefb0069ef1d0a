"""When pushes become updates: at once, or so that no push is ever more than K versions behind.

A shard's version counts its updates. The staleness of a push is how many updates came between the
fetch of the weights that its gradient is of and its own. With no bound every push is an update as
it arrives (Downpour SGD; Dean et al. 2012, section 4.1). With a bound K an update waits while it
would leave somebody who computes more than K behind; pushes that have waited and would be left
behind themselves are part of it, averaged by their samples:

    K = 0, two replicas     a  ──push──┐ waits        ┌─▶ version 1, to both
                            b  ────────┴──────push────┘   one update: what `data` computes
    K = 1                   a  ──push─▶ version 1 ──push──┐ would leave b 2 behind: waits
                            b  ───────────────────────────┴─push

So K = 0 is synchronous, and of R equal replicas K = R - 1 is enough for all to run freely. Unlike
the clocks of stale synchronous parallel (Ho et al. 2013), which hold fast replicas back to K rounds
ahead of the slowest for good, the bound counts versions: a fast replica takes more batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Content = TypeVar("Content")


@dataclass(frozen=True, kw_only=True)
class Offer(Generic[Content]):
    """A push that has arrived."""

    replica: int
    base: int
    """The version of the weights that it is a gradient of."""
    content: Content


class UpdateGate(Generic[Content]):
    """Who computes with which version, which pushes wait, and what comes next."""

    def __init__(self, bound: int | None, version: int = 0) -> None:
        self.version = version
        self._bound = bound
        self._held: dict[int, set[int]] = {}
        """By replica, versions of weights that it computes, or will compute, a push with."""
        self._gone: set[int] = set()
        self._waiting: deque[Offer[Content]] = deque()

    @property
    def replicas(self) -> set[int]:
        """Those that take part."""
        return set(self._held)

    def join(self, replica: int) -> None:
        """`replica` takes part from now on; it has, or is about to fetch, the present version."""
        self._held.setdefault(replica, set()).add(self.version)

    def leave(self, replica: int) -> None:
        """`replica` rests until it fetches again; what it has pushed still counts."""
        self._held.pop(replica, None)

    def forget(self, replica: int) -> None:
        """`replica` is gone for good, whatever of it may still arrive."""
        self._gone.add(replica)
        self._held.pop(replica, None)

    def hand_out(self, replica: int) -> int:
        """`replica` is given the present weights, and computes with these; their version."""
        if replica in self._held:
            self._held[replica].add(self.version)
        return self.version

    def fetched(self, replica: int) -> int:
        """As `hand_out`, to one that computes with nothing else any more; it takes part then."""
        if replica not in self._gone:
            self._held[replica] = {self.version}
        return self.version

    def offer(self, push: Offer[Content], holds: Iterable[int]) -> None:
        """A push arrives. `holds` are versions that its replica goes on to compute with.

        Where there is a bound nothing that it was given is still on its way to it.
        """
        if push.replica in self._held:
            self._held[push.replica] = set(holds)
        self._waiting.append(push)

    def next_update(self) -> tuple[Offer[Content], ...]:
        """The pushes that make up the next update, which is then done; () where it has to wait."""
        if not self._waiting:
            return ()
        after = self.version + 1
        bound = self._bound
        if bound is None:
            taken: tuple[Offer[Content], ...] = (self._waiting.popleft(),)
        else:
            held = (version for versions in self._held.values() for version in versions)
            if any(after - version > bound for version in held):
                return ()
            first, *others = self._waiting
            taken = (first, *(push for push in others if after - push.base > bound))
            self._waiting = deque(push for push in others if after - push.base <= bound)
        self.version = after
        return taken
