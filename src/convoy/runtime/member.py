"""A rank as a Ray actor: a `Trainee` and the means to reach it while it trains.

Its methods run in threads of their own, so `poll`, `hold` and `release` are answered in the
middle of `train`.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from convoy import state
from convoy.comm import PeerLostError, peer_loss
from convoy.interfaces import interface_of
from convoy.runtime.events import Event, EventSink
from convoy.runtime.formation import Formation, Job, Outcome
from convoy.runtime.gate import Gate
from convoy.runtime.memory import keep_freed_memory
from convoy.runtime.servers.replica import Replica, ReplicaOrders
from convoy.runtime.surveyor import Surveyor
from convoy.runtime.training import Trainee

MAX_CONCURRENCY = 8


@dataclass(frozen=True, kw_only=True)
class Berth:
    """What a member is told about the place it is on."""

    address: str
    """The IP address by which other members reach it."""
    device: str


class Member:
    """Made into an actor by a pool: `ray.remote(Member)`. Given one job after another."""

    def __init__(self, berth: Berth) -> None:
        self._berth = berth
        self._gate = Gate()
        self._events: list[Event] = []
        self._let_go = 0
        self._lock = threading.Lock()
        self._store: dist.TCPStore | None = None
        self._trainee: Trainee | None = None
        self._surveyor: Surveyor | None = None
        self._replica: Replica | None = None

    def prepare(self, job: Job, num_threads: int) -> int:
        """Build data, network and optimizer. Returns the process id."""
        with self._lock:
            self._events, self._let_go = [], 0
        keep_freed_memory()
        os.environ["GLOO_SOCKET_IFNAME"] = interface_of(self._berth.address)
        os.environ["NCCL_SOCKET_IFNAME"] = os.environ["GLOO_SOCKET_IFNAME"]
        device = torch.device(self._berth.device)
        self._replica = None
        self._trainee = Trainee(job, device, num_threads)
        return os.getpid()

    def survey(self, method: str, *arguments: Any) -> Any:
        """Have this place measured: `arrive`, then any method of `Surveyor`, then `leave`."""
        if method == "arrive":
            self._surveyor = Surveyor(self._berth.address, self._berth.device, *arguments)
            return None
        if method == "leave":
            self._surveyor = None
            return None
        return getattr(self._surveyor, method)(*arguments)

    def muster(self, first_step: int) -> None:
        """Get ready for a formation that begins with `first_step`."""
        self._gate.reset(first_step)

    def open_store(self) -> int:
        """Start the store at which the next crew meets; returns its port."""
        self._store = dist.TCPStore(self._berth.address, 0, is_master=True, wait_for_workers=False)
        return int(self._store.port)

    def train(self, formation: Formation, store_address: str, store_port: int | None) -> Outcome:
        """Take part in `formation`; returns how it ended.

        Ranks meet at the store that rank 0 opened; without a port there is none, for rank 0 died.
        """
        assert self._trainee is not None, "prepare comes first"
        try:
            store = self._met(formation.rank, len(formation.plan.shares), store_address, store_port)
        except PeerLostError as lost:
            return self._trainee.lost(lost)
        return self._trainee.train(formation, self._gate, EventSink(self._emit), store)

    def replicate(
        self,
        orders: ReplicaOrders,
        tensors: state.Tensors,
        store_address: str = "",
        store_port: int | None = None,
    ) -> Outcome:
        """Take part in asynchronous training, beginning with a network's state dict.

        The devices of a replica, if it has several, meet at the store that the first opened;
        without a port there is none, for that one died.
        """
        assert self._trainee is not None, "prepare comes first"
        store: dist.TCPStore | None = None
        if len(orders.ranks) > 1:
            try:
                store = self._met(orders.position, len(orders.ranks), store_address, store_port)
            except PeerLostError as lost:
                return Outcome(kind="peer lost", step=None, detail=str(lost))
        self._replica = Replica(self._trainee, orders, tensors, EventSink(self._emit), store)
        return self._replica.run()

    def _met(self, rank: int, world_size: int, address: str, port: int | None) -> dist.TCPStore:
        """The store at which ranks meet. Raises PeerLostError where rank 0 has none any more."""
        if port is None:
            raise PeerLostError("a rank died before the crew met")
        if rank == 0 or world_size == 1:
            assert self._store is not None, "open_store comes first"
            return self._store
        assert self._trainee is not None, "prepare comes first"
        timeout = timedelta(seconds=self._trainee.job.settings.timeout_s)
        with peer_loss():  # rank 0 may die before anyone meets
            return dist.TCPStore(address, port, is_master=False, timeout=timeout)

    def judge(self, tensors: state.Tensors, first: int, count: int) -> dict[str, float]:
        """Judge a network on `count` test samples from `first` on: sums."""
        assert self._trainee is not None, "prepare comes first"
        return self._trainee.judge(tensors, range(first, first + count))

    def buffers(self) -> state.Tensors:
        """The network's buffers as they are in this replica now; those of this device's part."""
        return self._replica.buffers() if self._replica is not None else {}

    def newest(self) -> dict[int, tuple[int, int]]:
        """By shard: incarnation and version of the newest answer that has come here."""
        return self._replica.newest() if self._replica is not None else {}

    def clock(self) -> float:
        """What time it is here, in seconds since 1970."""
        return time.time()

    def poll(self, received: int) -> list[Event]:
        """What was reported after the first `received` events, which are let go of.

        An answer that gets lost is given again: nothing is gone until it has arrived.
        """
        with self._lock:
            del self._events[: received - self._let_go]
            self._let_go = received
            return list(self._events)

    def hold(self) -> int:
        """Begin no further step; returns the last one begun."""
        return self._gate.hold()

    def release(self, stop_before: int, reason: str) -> None:
        """Run the steps before `stop_before`, and stop there."""
        self._gate.release(stop_before, reason)

    def final_state(self) -> state.Tensors:
        """The trained network's tensors."""
        assert self._trainee is not None
        return self._trainee.final_state()

    def _emit(self, event: Event) -> None:
        with self._lock:
            self._events.append(event)


def describe(error: BaseException) -> str:
    """An error from another process in one paragraph."""
    cause: Any = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {cause}"
