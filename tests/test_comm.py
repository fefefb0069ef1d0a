"""What verbs do, count and time, between this process and a peer over Gloo."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from convoy.comm import Comm, PeerLostError, Traffic, is_peer_loss, peer_loss

TIMEOUT_S = 30.0
CPU = torch.device("cpu")
PEER = """
import sys, torch, torch.distributed as dist
from datetime import timedelta
from convoy.comm import Comm
store = dist.TCPStore(
    "127.0.0.1", int(sys.argv[1]), is_master=False, timeout=timedelta(seconds=30)
)
comm = Comm(rank=1, world_size=2, store=store, timeout_s=30)
for line in sys.stdin:
    exec(line)
comm.close()
"""


class Peer:
    """Rank 1: runs what it is told to, line by line."""

    def __init__(self, port: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PEER, str(port)], stdin=subprocess.PIPE, text=True
        )

    def does(self, line: str) -> None:
        """Have the peer run a line; does not wait for it."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self) -> int:
        """Let the peer leave, or make it; its exit status."""
        try:
            self.process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=10)
        return self.process.returncode


@pytest.fixture
def pair() -> Iterator[tuple[Comm, Peer]]:
    """This process as rank 0, and rank 1."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        timeout = timedelta(seconds=TIMEOUT_S)
        store = dist.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timeout
        )
        peer = Peer(store.port)
        comm: Comm | None = None
        try:
            comm = Comm(rank=0, world_size=2, store=store, timeout_s=TIMEOUT_S)
            yield comm, peer
        finally:
            peer.end()
            if comm is not None:
                comm.close()


def test_verbs_between_two_ranks(pair: tuple[Comm, Peer]) -> None:
    comm, peer = pair
    assert comm.take() == Traffic(sent_to={}, blocked_s=0.0)

    peer.does("comm.all_reduce(torch.tensor([10.0, 20.0, 30.0]))")
    tensor = torch.tensor([1.0, 2.0, 3.0])
    comm.all_reduce(tensor)
    assert tensor.tolist() == [11, 22, 33]
    traffic = comm.take()
    assert traffic.sent_bytes == 12  # 2 (n - 1) / n * 3 * 4 bytes
    assert 0 < traffic.blocked_s < TIMEOUT_S
    assert comm.take() == Traffic(sent_to={}, blocked_s=0.0)

    peer.does("comm.all_reduce_async(torch.ones(5, dtype=torch.bfloat16)).wait()")
    future = comm.all_reduce_async(torch.ones(5, dtype=torch.bfloat16))
    assert future.wait().tolist() == [2] * 5
    assert comm.take().sent_bytes == 10

    peer.does("t = torch.zeros(4, dtype=torch.float64); comm.broadcast(t, 0)")
    comm.broadcast(torch.arange(4, dtype=torch.float64), 0)
    assert comm.take().sent_bytes == 32
    peer.does("comm.broadcast(2 * t, 1)")
    tensor = torch.zeros(4, dtype=torch.float64)
    comm.broadcast(tensor, 1)
    assert tensor.tolist() == [0, 2, 4, 6]
    assert comm.take().sent_bytes == 0  # counted at the source

    peer.does("comm.maximum([1.0, 5.0], torch.device('cpu'))")
    assert comm.maximum([3.0, 4.0], CPU) == [3.0, 5.0]
    assert comm.take().sent_bytes == 0

    peer.does("for _ in range(3): comm.all_reduce(torch.zeros(1, dtype=torch.uint8))")
    for _ in range(3):
        comm.all_reduce(torch.zeros(1, dtype=torch.uint8))
    assert comm.take().sent_bytes == 3  # of one sum, so that fractions of bytes add up


def test_a_peer_that_leaves_is_lost_at_once(pair: tuple[Comm, Peer]) -> None:
    comm, peer = pair
    assert peer.end() == 0
    started = time.perf_counter()
    with pytest.raises(PeerLostError) as caught:
        comm.all_reduce(torch.zeros(1000))
    assert time.perf_counter() - started < TIMEOUT_S / 2
    assert caught.value.__cause__ is not None
    assert "\n" not in str(caught.value)
    with pytest.raises(PeerLostError):
        comm.broadcast(torch.zeros(1), 1)
    with pytest.raises(PeerLostError):
        comm.maximum([0.0], CPU)


def test_the_time_since_the_last_asynchronous_verb_is_blocked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rank computes until it issues the last one; after that it can only wait."""
    now = 100.0
    monkeypatch.setattr("convoy.comm.time.perf_counter", lambda: now)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, **_: _Work(tensor))
    comm = Comm(rank=0, world_size=1)
    comm.world_size = 2  # with nobody there: the verb above is all that it uses
    comm.settle()
    assert comm.take().blocked_s == 0.0
    for moment in (101.0, 103.0):
        now = moment
        comm.all_reduce_async(torch.zeros(2))
    now = 103.5
    comm.settle()
    comm.settle()
    assert comm.take() == Traffic(sent_to={1: 16}, blocked_s=0.5)

    comm.all_reduce_async(torch.zeros(2))
    comm.count_sum((0, 1), 0, 0.25)  # another verb, meanwhile
    now = 104.0
    comm.settle()
    assert comm.take() == Traffic(sent_to={1: 8}, blocked_s=0.5)
    comm.all_reduce_async(torch.zeros(2))
    comm.take()
    now = 110.0
    comm.settle()
    assert comm.take().blocked_s == 0.0


class _Work:
    """What an asynchronous verb of torch.distributed returns."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def get_future(self) -> torch.futures.Future[list[Tensor]]:
        future: torch.futures.Future[list[Tensor]] = torch.futures.Future()
        future.set_result([self.tensor])
        return future


def test_alone_every_verb_is_a_no_op() -> None:
    comm = Comm(rank=0, world_size=1)
    tensor = torch.tensor([1.0, 2.0])
    comm.all_reduce(tensor)
    comm.broadcast(tensor, 0)
    assert comm.all_reduce_async(tensor).wait() is tensor
    comm.settle()
    assert tensor.tolist() == [1, 2]
    assert comm.maximum([3.0, 4.0], CPU) == [3.0, 4.0]
    assert comm.take() == Traffic(sent_to={}, blocked_s=0.0)
    comm.close()
    assert not dist.is_initialized()


def test_several_ranks_need_a_store() -> None:
    with pytest.raises(AssertionError, match="store"):
        Comm(rank=0, world_size=2)


def test_a_store_that_nobody_joins() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(PeerLostError):
        Comm(rank=0, world_size=2, store=store, timeout_s=0.2)
    assert not dist.is_initialized()


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/"


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (dist.DistBackendError("NCCL error: remote process exited"), True),
        (dist.DistNetworkError("Connection reset by peer"), True),
        (dist.DistStoreError("wait timeout after 100 ms"), True),
        (RuntimeError(f"{GLOO}pair.cc:534] Connection closed by peer [127.0.0.1]:1"), True),
        (RuntimeError(f"{GLOO}unbound_buffer.cc:78] Timed out waiting 60000ms for recv"), True),
        (RuntimeError("Gloo connectFullMesh failed with timed out"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (RuntimeError("cannot open /data/igloos/7.png"), False),
        (ValueError("gloo"), False),
        (KeyboardInterrupt(), False),
    ],
    ids=repr,
)
def test_which_errors_mean_that_a_peer_is_lost(error: BaseException, lost: bool) -> None:
    assert is_peer_loss(error) == lost
    with pytest.raises(PeerLostError if lost else type(error)), peer_loss():
        raise error


def test_a_peer_that_is_known_to_be_lost_stays_so() -> None:
    """`peer_loss` around a backward pass in which a verb has raised already."""
    lost = PeerLostError("gone")
    with pytest.raises(PeerLostError) as caught, peer_loss(), peer_loss():
        raise lost
    assert caught.value is lost
