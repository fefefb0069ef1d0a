"""Counted and timed verbs over torch.distributed: the only place that moves tensors.

    comm = Comm(rank=0, world_size=2, backend="gloo", store=store, timeout_s=60)
    comm.all_reduce(tensor)            # blocks; its bytes and the time blocked are counted
    comm.all_reduce_async(tensor)      # overlaps; `settle` closes the account after backward
    traffic = comm.take()              # what happened since the last `take`
    comm.close()

Bytes are payload bytes as `cost.schedule` defines them, so that a run's figures and its
schedule's can be equal, exactly.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from convoy.cost.schedule import ring_share


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What a rank sent, and for how long communication held it up."""

    sent_to: dict[int, int]
    """Bytes by the rank that they went to."""
    blocked_s: float

    @property
    def sent_bytes(self) -> int:
        """All of them."""
        return sum(self.sent_to.values())


class PeerLostError(Exception):
    """A collective failed because a peer died, hung past the timeout or became unreachable.

    Not a ConvoyError: the crew handles it by re-forming, and a user never sees it.
    """


class Comm:
    """One rank's membership of a process group.

    `world_size` 1 needs no store: every verb is then a no-op, so that strategies need no
    special case for a single rank.
    """

    def __init__(
        self,
        *,
        rank: int,
        world_size: int,
        backend: str = "gloo",
        store: dist.Store | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.step_samples = 1
        """How many real samples the step under way has on this rank: 0 means a stand-in."""
        self._timeout = timedelta(seconds=timeout_s)
        self._reduced: Counter[tuple[int, ...]] = Counter()
        """Bytes of sums, by the ranks that take part."""
        self._direct: Counter[int] = Counter()
        """Bytes of all else, by the rank that they go to."""
        self._blocked_s = 0.0
        self._last_issue_s: float | None = None
        self._blocked_before_s = 0.0
        """Of `_blocked_s`, what was before that."""
        self._under_way: list[tuple[dist.Work, Tensor]] = []
        """What is being sent: a tensor has to live until it is."""
        if world_size > 1:
            if store is None:
                raise AssertionError("more than one rank needs a store to meet at")
            with peer_loss():
                dist.init_process_group(
                    backend,
                    store=store,
                    rank=rank,
                    world_size=world_size,
                    timeout=self._timeout,
                )

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum `tensor` over all ranks, in place. Blocks."""
        if self.world_size > 1:
            started = time.perf_counter()
            with peer_loss():
                dist.all_reduce(tensor)
            self._reduced[tuple(range(self.world_size))] += tensor.nbytes
            self._blocked_s += time.perf_counter() - started

    def all_reduce_async(self, tensor: Tensor) -> torch.futures.Future[Tensor]:
        """Start summing `tensor` over all ranks; the future holds the sum.

        Call `settle` when the computation that overlaps it has ended.
        """
        if self.world_size == 1:
            alone: torch.futures.Future[Tensor] = torch.futures.Future()
            alone.set_result(tensor)
            return alone
        self._reduced[tuple(range(self.world_size))] += tensor.nbytes
        work = dist.all_reduce(tensor, async_op=True)
        self._last_issue_s, self._blocked_before_s = time.perf_counter(), self._blocked_s
        future: torch.futures.Future[list[Tensor]] = work.get_future()
        return future.then(lambda done: done.value()[0])

    def team(self, teams: Sequence[tuple[int, ...]]) -> Team:
        """The one of these teams of ranks that this rank is in.

        Blocks: all ranks take part, with the same teams in the same order.
        """
        own: Team | None = None
        for ranks in teams:
            with peer_loss():
                group = dist.new_group(list(ranks), timeout=self._timeout)
            if self.rank in ranks:
                own = Team(self, ranks, group)
        assert own is not None
        return own

    def count_sum(self, ranks: tuple[int, ...], size: int, seconds: float) -> None:
        """Note a sum of `size` bytes over `ranks`, which blocked for so long."""
        self._reduced[ranks] += size
        self._blocked_s += seconds

    def settle(self) -> None:
        """Count the time since the last asynchronous verb was issued as blocked.

        Until that moment the rank was computing; from it on, it could only wait. What other verbs
        have counted since is part of that time.
        """
        if self._last_issue_s is not None:
            since = time.perf_counter() - self._last_issue_s
            self._blocked_s = max(self._blocked_s, self._blocked_before_s + since)
            self._last_issue_s = None

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Copy `tensor` from rank `source` to all, in place. Blocks."""
        if self.world_size > 1:
            started = time.perf_counter()
            with peer_loss():
                dist.broadcast(tensor, source)
            if self.rank == source:
                for other in range(self.world_size):
                    self._direct[other] += tensor.nbytes if other != source else 0
            self._blocked_s += time.perf_counter() - started

    def announce(self, values: Sequence[int]) -> list[int]:
        """What rank 0 gives as `values`, on every rank; others give as many. Blocks; not counted.

        (Its time is, for those who wait for it.)
        """
        if self.world_size == 1:
            return list(values)
        started = time.perf_counter()
        told = torch.tensor(values, dtype=torch.int64)
        with peer_loss():
            dist.broadcast(told, 0)
        self._blocked_s += time.perf_counter() - started
        return [int(value) for value in told]

    def send(self, tensor: Tensor, destination: int) -> None:
        """Send `tensor` to rank `destination`, which receives one of its shape and type. Blocks."""
        started = time.perf_counter()
        with peer_loss():
            dist.send(tensor, destination)
        self._direct[destination] += tensor.nbytes
        self._blocked_s += time.perf_counter() - started

    def receive(self, tensor: Tensor, source: int) -> None:
        """Fill `tensor` with what rank `source` sends. Blocks."""
        started = time.perf_counter()
        with peer_loss():
            dist.recv(tensor, source)
        self._blocked_s += time.perf_counter() - started

    def send_async(self, tensor: Tensor, destination: int, tag: int = 0) -> None:
        """As `send`, but returns at once; `tensor` is not to change until `finish`.

        Tensors with a `tag` meet those who ask for one of that tag, in whatever order (gloo only).
        """
        with peer_loss():
            work = dist.isend(tensor, destination, tag=tag)
        assert work is not None  # both are of the group
        self._direct[destination] += tensor.nbytes
        self._under_way.append((work, tensor))

    def receive_async(self, tensor: Tensor, source: int, tag: int = 0) -> Callable[[], Tensor]:
        """As `receive`, but returns at once; what it returns waits for the tensor and gives it."""
        with peer_loss():
            work = dist.irecv(tensor, source, tag=tag)
        assert work is not None

        def wait() -> Tensor:
            started = time.perf_counter()
            with peer_loss():
                work.wait()
            self._blocked_s += time.perf_counter() - started
            return tensor

        return wait

    def finish(self) -> None:
        """Wait until what `send_async` was given has been sent."""
        started = time.perf_counter()
        with peer_loss():
            for work, _ in self._under_way:
                work.wait()
        self._under_way.clear()
        self._blocked_s += time.perf_counter() - started

    def maximum(self, values: list[float], device: torch.device) -> list[float]:
        """Element-wise maximum of `values` over all ranks, whose tensors are on `device`.

        Blocks; not counted.
        """
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        if self.world_size > 1:
            with peer_loss():
                dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return [float(value) for value in tensor]

    def take(self) -> Traffic:
        """Return what was sent and waited for since the last call, and start anew."""
        sent = Counter(self._direct)
        for ranks, size in self._reduced.items():
            position = ranks.index(self.rank)
            following = ranks[(position + 1) % len(ranks)]
            sent[following] += ring_share(size, len(ranks), position)
        sent_to = {rank: size for rank, size in sorted(sent.items()) if size}
        traffic = Traffic(sent_to=sent_to, blocked_s=self._blocked_s)
        self._reduced.clear()
        self._direct.clear()
        self._blocked_s = 0.0
        self._last_issue_s = None
        return traffic

    def close(self) -> None:
        """Leave the group. Peers that still wait for this rank get an error at once."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


class Team:
    """Some of a crew's ranks, which sum what only they have."""

    def __init__(self, comm: Comm, ranks: tuple[int, ...], group: dist.ProcessGroup) -> None:
        self._comm, self._ranks = comm, ranks
        self.group = group
        """torch's."""

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Sum each tensor over the team, in place, all of them under way at once. Blocks."""
        started = time.perf_counter()
        with peer_loss():
            works = [dist.all_reduce(tensor, group=self.group, async_op=True) for tensor in tensors]
            for work in works:
                work.wait()
        size = sum(tensor.nbytes for tensor in tensors)
        self._comm.count_sum(self._ranks, size, time.perf_counter() - started)


class Rehearsal(Comm):
    """A crew of `world_size` of which only this rank is there; every verb returns at once.

    For finding out what taking part costs a rank besides the bytes. Sums are this rank's own.
    """

    def __init__(self, world_size: int) -> None:
        super().__init__(rank=0, world_size=1)
        with peer_loss():  # DistributedDataParallel wants a group
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        self.world_size = world_size

    def all_reduce(self, tensor: Tensor) -> None:
        """Leave `tensor` as it is."""

    def all_reduce_async(self, tensor: Tensor) -> torch.futures.Future[Tensor]:
        """A future that holds `tensor` already."""
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(tensor)
        return done

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Leave `tensor` as it is."""


class peer_loss:  # noqa: N801 - reads as a statement: `with peer_loss():`
    """Turn the errors that torch.distributed raises for a lost peer into PeerLostError."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and is_peer_loss(error):
            raise PeerLostError(str(error).splitlines()[0]) from error


def is_peer_loss(error: BaseException) -> bool:
    """Whether torch.distributed raised `error` because a peer is gone.

    NCCL and the store have error classes of their own; Gloo raises a bare RuntimeError that
    only its source path tells from others.
    """
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError | dist.DistStoreError):
        return True
    return isinstance(error, RuntimeError) and bool(re.search(r"(?i)\bgloo\b", str(error)))
