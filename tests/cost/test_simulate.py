"""The simulator against closed forms and laws that hold whatever the schedule."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.cost.curve import Curve
from convoy.cost.fabric import Fabric, all_reduce_flow
from convoy.cost.schedule import (
    Collective,
    Compute,
    Exchange,
    Schedule,
    Transfer,
    sent_by_rank,
    sent_bytes,
)
from convoy.cost.simulate import simulate

SECONDS = {"forward": 1.0, "backward": 2.0, "update": 0.25}


def seconds(operation: Compute) -> float:
    return SECONDS[operation.phase] * operation.samples


def fabric(num_hosts: int, bandwidth: float = 100.0, **more: object) -> Fabric:
    hosts = tuple(range(num_hosts))
    every = dict.fromkeys(hosts, bandwidth)
    return Fabric(**({"hosts": hosts, "up": every, "down": every} | more))  # type: ignore[arg-type]


def synchronous(samples: list[int], payload: int) -> Schedule:
    n = len(samples)
    ranks = tuple(range(n))
    return (
        *(Compute(rank=r, phase="forward", samples=samples[r]) for r in ranks),
        *(Compute(rank=r, phase="backward", samples=samples[r], after=(r,)) for r in ranks),
        Collective(
            kind="all-reduce", ranks=ranks, payload_bytes=payload, after=tuple(range(n, 2 * n))
        ),
        *(Compute(rank=r, phase="update", samples=1, after=(2 * n,)) for r in ranks),
    )


def test_one_device_does_one_thing_after_another() -> None:
    played = simulate(synchronous([4], 0)[:2], seconds, fabric(1))
    assert played.step_s == 12
    assert [(s.start, s.end) for s in played.spans] == [(0, 4), (4, 12)]
    (rank,) = played.ranks
    assert (rank.compute_s, rank.wait_s, rank.comm_s, rank.sent_bytes) == (12, 0, 0, 0)


@pytest.mark.parametrize("num_ranks", [2, 3, 8])
def test_a_ring_after_unequal_work(num_ranks: int) -> None:
    samples = list(range(1, num_ranks + 1))
    network = fabric(num_ranks, latency_s=0.01, floor_s=0.5)
    schedule = synchronous(samples, 1000)
    played = simulate(schedule, seconds, network)
    work = 3 * num_ranks
    ring = 0.5 + 2 * (num_ranks - 1) * (0.01 + 1000 / num_ranks / 100)
    assert played.step_s == pytest.approx(work + ring + 0.25)
    for rank, times in enumerate(played.ranks):
        # Blocked ends with the collective, but the update is computing: as a real run counts.
        assert times.wait_s == pytest.approx(work - 3 * samples[rank])
        assert times.comm_s == pytest.approx(ring)
        assert times.compute_s == pytest.approx(3 * samples[rank] + 0.25)
        assert times.sent_bytes == sent_bytes(schedule, rank)


def test_the_slowest_link_holds_up_the_ring() -> None:
    network = fabric(3, between={(1, 2): 10.0})
    played = simulate(synchronous([0, 0, 0], 300), seconds, network)
    assert played.step_s == pytest.approx(2 * 2 / 3 * 300 / 10 + 0.25)


def test_transfers_that_meet_share_the_link() -> None:
    """200 and 600 bytes into one host of 100 bytes/s: half each until the first is done."""
    schedule = (
        Transfer(source=0, destination=2, payload_bytes=200),
        Transfer(source=1, destination=2, payload_bytes=600),
    )
    played = simulate(schedule, seconds, fabric(3))
    assert [span.end for span in played.spans] == pytest.approx([4, 8])


def test_what_one_transfer_cannot_use_is_the_others() -> None:
    """Host 0 sends at most 20; host 1 gets the 80 that are left of host 2's 100."""
    network = fabric(3, up={0: 20.0, 1: 1000.0, 2: 100.0})
    schedule = (
        Transfer(source=0, destination=2, payload_bytes=200),
        Transfer(source=1, destination=2, payload_bytes=800),
    )
    played = simulate(schedule, seconds, network)
    assert [span.end for span in played.spans] == pytest.approx([10, 10])


def test_both_directions_of_a_link_are_free() -> None:
    schedule = (
        Transfer(source=0, destination=1, payload_bytes=300),
        Transfer(source=1, destination=0, payload_bytes=300),
    )
    assert simulate(schedule, seconds, fabric(2)).step_s == pytest.approx(3)


def test_ranks_of_one_host_do_not_use_its_link() -> None:
    schedule = synchronous([0, 0], 1000)
    one_host = Fabric(hosts=(0, 0), up={0: 1.0}, down={0: 1.0}, within=2000.0)
    assert simulate(schedule, seconds, one_host).step_s == pytest.approx(2 * 500 * 2 / 2000 + 0.25)


def test_moving_bytes_takes_time_of_the_device() -> None:
    """A second of work meets half a second of copying: both get half until that is done."""
    schedule = (
        Compute(rank=0, phase="forward", samples=1),
        Compute(rank=1, phase="forward", samples=0),
        Collective(kind="all-reduce", ranks=(0, 1), payload_bytes=50),
    )
    network = fabric(2, bandwidth=math.inf, cpu_s_per_byte=(0.01, 0.01))
    played = simulate(schedule, seconds, network)
    assert played.spans[0].end == pytest.approx(1.5)
    assert played.spans[2].end == pytest.approx(1.0)


def test_a_bucket_overlaps_the_rest_of_backward() -> None:
    """Two layers; the last one's gradients travel while the first one's are computed."""
    ranks = (0, 1)
    schedule = (
        *(Compute(rank=r, phase="backward", samples=1, layer="b") for r in ranks),
        *(Compute(rank=r, phase="backward", samples=1, layer="a", after=(r,)) for r in ranks),
        Collective(kind="all-reduce", ranks=ranks, payload_bytes=100, after=(0, 1)),
        Collective(kind="all-reduce", ranks=ranks, payload_bytes=300, after=(2, 3)),
    )
    played = simulate(schedule, seconds, fabric(2))
    assert [(s.start, s.end) for s in played.spans[4:]] == [(2, 3), (4, 7)]


def test_collectives_of_one_group_run_one_after_another() -> None:
    schedule = tuple(
        Collective(kind="all-reduce", ranks=(0, 1), payload_bytes=100) for _ in range(3)
    )
    played = simulate(schedule, seconds, fabric(2))
    assert [span.end for span in played.spans] == pytest.approx([1, 2, 3])


def test_a_broadcast_leaves_its_root_once_for_each() -> None:
    schedule = (Collective(kind="broadcast", ranks=(1, 0, 2), payload_bytes=100),)
    played = simulate(schedule, seconds, fabric(3))
    assert played.step_s == pytest.approx(2)
    assert [rank.sent_bytes for rank in played.ranks] == [0, 200, 0]


def test_an_exchange_fills_every_host_s_links() -> None:
    """By hand: of four ranks on two hosts, a third of what each sends stays on its host."""
    exchange = Exchange(ranks=(0, 1, 2, 3), sends=(30,) * 4, receives=(30,) * 4, peers=3)
    hosts = replace(fabric(2), hosts=(0, 0, 1, 1), latency_s=0.5)
    assert simulate((exchange,), seconds, hosts).step_s == pytest.approx(0.5 + 40 / 100)
    assert sent_by_rank((exchange,), 4) == [30] * 4
    busy = replace(hosts, move_cpu=(Curve((10, 20), (0.4, 0.8)),) * 4)
    assert simulate((exchange,), seconds, busy).step_s == pytest.approx(6 * 0.4)  # 3 each way


def test_a_circle_is_refused() -> None:
    schedule = (
        Compute(rank=0, phase="forward", samples=1, after=(1,)),
        Compute(rank=0, phase="forward", samples=1, after=(0,)),
    )
    with pytest.raises(ValueError, match="operation 0 .* in a circle"):
        simulate(schedule, seconds, fabric(1))


@pytest.mark.parametrize("num_ranks", [2, 4, 16])
@pytest.mark.parametrize("kind", ["ring", "halving-doubling"])
def test_bytes_of_an_all_reduce(num_ranks: int, kind: str) -> None:
    """Both are optimal: every rank sends and receives 2 (n - 1) / n times the payload."""
    load, _ = all_reduce_flow(fabric(num_ranks, all_reduce=kind), tuple(range(num_ranks)), 4096)
    expected = 2 * (num_ranks - 1) / num_ranks * 4096
    assert load == pytest.approx(
        {(way, host): expected for way in ("up", "down") for host in range(num_ranks)}
    )


@pytest.mark.parametrize(
    ("kind", "rounds"), [("ring", 30), ("halving-doubling", 8), ("hierarchical", 6)]
)
def test_latencies_of_an_all_reduce(kind: str, rounds: int) -> None:
    hosts = tuple(range(16)) if kind != "hierarchical" else tuple(i // 4 for i in range(16))
    every = dict.fromkeys(set(hosts), 1.0)
    network = Fabric(hosts=hosts, up=every, down=every, latency_s=1.0, all_reduce=kind)  # type: ignore[arg-type]
    assert all_reduce_flow(network, tuple(range(16)), 64)[1] == rounds


def test_a_number_of_ranks_that_is_no_power_of_two() -> None:
    """Ranks 4 and 5 hand theirs to 0 and 1 first, and get the sum back."""
    load, delay = all_reduce_flow(
        fabric(6, all_reduce="halving-doubling", latency_s=1.0), tuple(range(6)), 400
    )
    assert load["up", 4] == load["down", 4] == 400
    assert load["up", 0] == 400 + 600
    assert load["up", 3] == 600
    assert delay == 2 + 2 * 2


def test_a_hierarchy_crosses_the_network_once_per_host() -> None:
    hosts = (0, 0, 1, 1, 1)
    network = Fabric(
        hosts=hosts, up={0: 1.0, 1: 1.0}, down={0: 1.0, 1: 1.0}, all_reduce="hierarchical"
    )
    load, _ = all_reduce_flow(network, (0, 1, 2, 3, 4), 100)
    assert load["up", 0] == load["down", 1] == 100
    assert (load["within", 0], load["within", 1]) == (200, 400)


sizes = st.integers(1, 1000)


@st.composite
def transfers(draw: Callable[..., int]) -> tuple[Schedule, Fabric]:
    num_hosts = draw(st.integers(2, 5))
    hosts = st.integers(0, num_hosts - 1)
    speeds = st.integers(1, 100)
    network = fabric(
        num_hosts,
        up={h: float(draw(speeds)) for h in range(num_hosts)},
        down={h: float(draw(speeds)) for h in range(num_hosts)},
    )
    schedule: list[Transfer] = []
    for index in range(draw(st.integers(1, 8))):
        source = draw(hosts)
        destination = draw(hosts.filter(lambda h, s=source: h != s))
        after = tuple(draw(st.sets(st.integers(0, index - 1), max_size=2))) if index else ()
        schedule.append(
            Transfer(source=source, destination=destination, payload_bytes=draw(sizes), after=after)
        )
    return tuple(schedule), network


@settings(max_examples=200, deadline=None)
@given(transfers())
def test_no_link_carries_more_than_it_can(case: tuple[Schedule, Fabric]) -> None:
    schedule, network = case
    spans = simulate(schedule, seconds, network).spans
    moments = sorted({m for span in spans for m in (span.start, span.end)})
    for host in network.up:
        for way, name in ((network.up, "source"), (network.down, "destination")):
            ops = [
                (op, span)
                for op, span in zip(schedule, spans, strict=True)
                if getattr(op, name) == host
            ]
            for first, last in itertools.combinations(moments, 2):
                within = sum(
                    op.payload_bytes  # type: ignore[union-attr]
                    for op, span in ops
                    if first <= span.start and span.end <= last
                )
                assert within <= way[host] * (last - first) * (1 + 1e-9) + 1e-6


@settings(max_examples=200, deadline=None)
@given(transfers())
def test_a_transfer_alone_is_never_slower_than_among_others(
    case: tuple[Schedule, Fabric],
) -> None:
    schedule, network = case
    for op, span in zip(schedule, simulate(schedule, seconds, network).spans, strict=True):
        assert isinstance(op, Transfer)
        alone = op.payload_bytes / min(network.up[op.source], network.down[op.destination])
        assert span.end - span.start >= alone * (1 - 1e-9)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=12))
def test_devices_lose_no_time(work: list[tuple[int, int]]) -> None:
    """Independent work: each device is busy until it has done all of its own."""
    schedule = tuple(Compute(rank=rank, phase="forward", samples=n) for rank, n in work)
    played = simulate(schedule, seconds, fabric(3))
    assert played.step_s == pytest.approx(
        max(sum(n for rank, n in work if rank == r) for r in range(3))
    )
