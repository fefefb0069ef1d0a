"""Scaling against closed forms: no simulation is needed to know these numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from convoy.cost.analytic import communication_s
from convoy.cost.curve import Curve
from convoy.cost.equal_nodes import EqualNodes
from convoy.cost.layers import LayerSize, NetworkFacts
from convoy.cost.profile import AllReduceProfile, DeviceProfile, LayerProfile
from convoy.cost.world import Device, Overhead, World
from convoy.scaling import EXPOSED_ABOVE, Workload, scaling_curve
from convoy.strategies import make_strategy

PARAMETERS = 200_000
"""Fewer bytes than fill DDP's first bucket, so that all travels when backward has ended."""
NETWORK = NetworkFacts(
    num_parameters=PARAMETERS,
    num_buffers=0,
    layers=(LayerSize(name="fc", parameters=(PARAMETERS,), activations=10),),
)
DATA = make_strategy("data", {})


def nodes(*, memory_bytes: int = 0, update_s: float = 0.0, **more: Any) -> EqualNodes:
    layer = LayerProfile(name="fc", forward_s=(0.001,), backward_s=(0.002,))
    profile = DeviceProfile(
        machine="tower",
        device="cpu",
        hardware="x",
        cores=2,
        threads=1,
        memory_bytes=memory_bytes,
        samples=(1,),
        load_s=(0.0,),
        forward_s=(0.001,),
        backward_s=(0.002,),
        update_s=update_s,
        layers=(layer,),
    )
    device = Device(machine="tower", device="cpu", host=0, profile=profile)
    world = World(devices=(device,), bandwidths={}, latencies={})
    figures: dict[str, Any] = {"bandwidth_bytes_s": 1.25e9, "latency_s": 1e-4}
    return EqualNodes(world=world, **(figures | more))


def test_strong_scaling_over_a_ring() -> None:
    work = Workload(network=NETWORK, batch_size=64)
    curve = scaling_curve(nodes(), work, DATA, (1, 4, 64, 128))
    assert [point.nodes for point in curve.points] == [1, 4, 64]
    for point in curve.points:
        exchange = communication_s(4 * PARAMETERS, point.nodes, 1.25e9, 1e-4)
        step = 0.003 * 64 / point.nodes + exchange
        assert point.step_s == pytest.approx(step)
        assert point.exposed_comm_s == pytest.approx(exchange)
        assert point.images_per_s == pytest.approx(64 / step)
        assert point.efficiency == pytest.approx(0.003 * 64 / point.nodes / step)
        assert point.sent_bytes_per_step == 2 * (point.nodes - 1) * 4 * PARAMETERS
    (left,) = curve.skipped
    assert (left.nodes, left.batch_size) == (128, 64)
    assert "64" in left.reason
    assert "128" in left.reason


def test_weak_scaling_and_another_baseline() -> None:
    work = Workload(network=NETWORK, batch_per_node=8)
    curve = scaling_curve(nodes(), work, DATA, (4, 16), baseline=4)
    steps = [0.024 + communication_s(4 * PARAMETERS, n, 1.25e9, 1e-4) for n in (4, 16)]
    assert [p.batch_size for p in curve.points] == [32, 128]
    assert [p.efficiency for p in curve.points] == pytest.approx([1.0, steps[0] / steps[1]])


def test_where_communication_stops_being_hidden() -> None:
    work = Workload(network=NETWORK, batch_per_node=8)
    counts = (1, 2, 4, 8, 16, 32, 64)
    curve = scaling_curve(nodes(), work, DATA, counts)

    def exposed(n: int) -> float:
        comm = communication_s(4 * PARAMETERS, n, 1.25e9, 1e-4)
        return comm / (0.024 + comm)

    assert curve.exposed_from == next(n for n in counts if exposed(n) > EXPOSED_ABOVE)
    assert f"stops being hidden at {curve.exposed_from} nodes" in curve.verdict
    fast = scaling_curve(nodes(bandwidth_bytes_s=1e12, latency_s=0.0), work, DATA, counts)
    assert fast.exposed_from is None
    assert "stays hidden up to 64 nodes" in fast.verdict


def test_an_infinitely_fast_network_is_perfect() -> None:
    work = Workload(network=NETWORK, batch_per_node=3)
    perfect = nodes(bandwidth_bytes_s=math.inf, latency_s=0.0)
    curve = scaling_curve(perfect, work, DATA, (1, 7, 100))
    assert [p.efficiency for p in curve.points] == pytest.approx([1.0] * 3)


def test_hosts_reduce_before_their_rings() -> None:
    """Four nodes on each host: within a host 2 x 3 payloads, between hosts a ring of two."""
    work = Workload(network=NETWORK, batch_per_node=8)
    some = nodes(per_host=4, within_bytes_s=1e12, all_reduce="hierarchical")
    (point,) = scaling_curve(some, work, DATA, (8,)).points
    assert point.exposed_comm_s == pytest.approx(communication_s(4 * PARAMETERS, 2, 1.25e9, 1e-4))
    slow = nodes(per_host=4, within_bytes_s=1e8, all_reduce="hierarchical")
    (inside,) = scaling_curve(slow, work, DATA, (4,)).points
    assert inside.exposed_comm_s == pytest.approx(6 * 4 * PARAMETERS / 1e8)


def test_too_little_memory_is_said() -> None:
    work = Workload(network=NETWORK, batch_per_node=8)
    curve = scaling_curve(nodes(memory_bytes=2**20), work, DATA, (1, 2))
    assert curve.points == ()
    assert "GiB are needed" in curve.skipped[0].reason
    assert "none of these" in curve.verdict


@pytest.mark.parametrize(
    ("kind", "count", "per_host", "rounds"),
    [
        ("ring", 1, 1, 0),
        ("ring", 8, 4, 14),
        ("halving-doubling", 8, 1, 6),
        ("halving-doubling", 9, 1, 8),
        ("hierarchical", 8, 4, 2),
        ("hierarchical", 4, 4, 1),
    ],
)
def test_rounds(kind: Any, count: int, per_host: int, rounds: int) -> None:
    assert nodes(all_reduce=kind, per_host=per_host).rounds(count) == rounds


def test_measured_overhead_grows_by_rounds_and_by_bytes() -> None:
    """Two measured: 1 ms whatever the size, and 4 ms more for a megabyte."""
    some = nodes()
    measured = AllReduceProfile(
        payload_bytes=(4, 10**6), seconds=(0.001, 0.005), cpu_s=((0.0, 0.0), (0.0, 0.0))
    )
    world = World(
        devices=some.world.devices,
        bandwidths={},
        latencies={},
        all_reduce=measured,
        num_measured=2,
        overhead=Overhead(
            measured=Curve((4, 10**6), (0.001, 0.005)),
            **{"delay_s": 0.0, "s_per_byte": 0.0, "among": 2, "count": 2, "rounds": 2},
        ),
    )
    eight = EqualNodes(world=world, bandwidth_bytes_s=1e9, latency_s=0.0).fabric(8)
    assert eight.overhead_s(4) == pytest.approx(7 * 0.001)
    assert eight.overhead_s(10**6) == pytest.approx(7 * 0.001 + 0.004 * (7 / 8) / (1 / 2), rel=1e-4)
