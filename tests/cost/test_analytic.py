"""Closed forms against counts by hand, torch's layers, and the simulator."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from convoy.cost.analytic import (
    Convolution,
    amdahl_bound,
    bound_of,
    communication_s,
    convolution_macs,
    convolution_s,
    execution_s,
    speed_up,
)
from convoy.cost.fabric import Fabric
from convoy.cost.layers import NetworkFacts, layers_of
from convoy.cost.profile import AllReduceProfile, DeviceProfile
from convoy.cost.schedule import Compute
from convoy.cost.simulate import simulate
from convoy.cost.world import Device, World, world_of
from convoy.planner import Task, predict
from convoy.strategies import Problem, Worker, make_strategy

from .profiles import device, link, profile

CONV1 = Convolution(in_channels=1, filters=20, kernel=(5, 5), image=(28, 28))


def test_lenets_first_layer_by_hand() -> None:
    assert CONV1.output == (24, 24)
    assert convolution_macs(CONV1) == 20 * 24 * 24 * 25
    assert convolution_macs(CONV1, samples=64) == 64 * 288_000
    assert convolution_s(CONV1, 64, 2e9) == 3 * 64 * 288_000 / 1e9
    first = convolution_s(CONV1, 64, 2e9, needs_input_gradient=False)
    assert first == pytest.approx(2 * 64 * 288_000 / 1e9)


@settings(deadline=None, max_examples=40)
@given(
    channels=st.integers(1, 4),
    filters=st.integers(1, 4),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    image=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
)
def test_the_count_that_torch_would_do(
    channels: int,
    filters: int,
    kernel: tuple[int, int],
    image: tuple[int, int],
    stride: int,
    padding: int,
) -> None:
    layer = nn.Conv2d(channels, filters, kernel, stride, padding)
    described = Convolution(
        in_channels=channels,
        filters=filters,
        kernel=kernel,
        image=image,
        stride=stride,
        padding=padding,
    )
    with torch.device("meta"):
        (facts,) = layers_of(layer, (channels, *image))
    assert described.output == facts.output_shape[1:]
    assert convolution_macs(described) == facts.macs


@pytest.mark.parametrize("workers", [1, 2, 3, 16])
@pytest.mark.parametrize("samples", [16, 48])
def test_a_step_is_what_the_simulator_plays(workers: int, samples: int) -> None:
    """Equal machines, gradients in one piece once all are there, a ring: equality."""
    payload, bandwidth, latency = 4 * 250_000, 1.25e8, 1e-4
    per_sample = {"load": 0.001, "forward": 0.01, "backward": 0.02}
    network = NetworkFacts(num_parameters=250_000, num_buffers=0)
    hosts = tuple(range(workers))
    crew = tuple(Worker(index=i, machine=f"m{i}", device="cpu") for i in hosts)
    batch = samples * workers
    strategy = make_strategy("data", {})
    plan = strategy.plan(Problem(batch_size=batch, workers=crew, network=network))

    def seconds(compute: Compute) -> float:
        if compute.phase == "update":
            return 0.3
        return per_sample.get(compute.phase, 0.0) * compute.samples

    every = dict.fromkeys(hosts, bandwidth)
    fabric = Fabric(hosts=hosts, up=every, down=every, latency_s=latency)
    played = simulate(strategy.schedule(plan, 0), seconds, fabric)
    exchange = communication_s(payload, workers, bandwidth, latency)
    assert played.step_s == pytest.approx(
        execution_s(0.3, 0.031 * batch, workers, exchange), rel=1e-12
    )
    alone = execution_s(0.3, 0.031 * batch, 1)
    bound = amdahl_bound(0.3, 0.031 * batch, workers)
    assert speed_up(alone, played.step_s) <= bound * (1 + 1e-12)


def test_one_worker_sends_nothing() -> None:
    assert communication_s(1e9, 1, 1.0, 1.0) == 0
    assert communication_s(1000, 2, 100.0, 0.5) == pytest.approx(2 * (0.5 + 5))


def test_amdahls_law() -> None:
    assert amdahl_bound(0.05, 0.95, 1) == 1
    assert amdahl_bound(0.5, 0.5, 2) == pytest.approx(4 / 3)
    assert amdahl_bound(0.05, 0.95, math.inf) == pytest.approx(20)
    assert amdahl_bound(0, 3, 7) == pytest.approx(7)
    assert amdahl_bound(0, 3, math.inf) == math.inf
    gains = [amdahl_bound(0.1, 0.9, p) for p in range(1, 50)]
    assert all(a < b for a, b in itertools.pairwise(gains))


@pytest.mark.parametrize(
    ("serial_s", "parallel_s", "workers"), [(-1, 1, 2), (0, 0, 2), (1, 1, 0.5), (1, 1, math.nan)]
)
def test_what_amdahl_refuses(serial_s: float, parallel_s: float, workers: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        amdahl_bound(serial_s, parallel_s, workers)


def test_the_bound_of_unequal_devices() -> None:
    """A device of half the speed is half a worker, and its update is not the fastest one's."""
    profile = DeviceProfile(
        machine="a",
        device="cpu",
        hardware="x",
        cores=1,
        threads=1,
        memory_bytes=2**30,
        samples=(1,),
        load_s=(0.0,),
        forward_s=(0.1,),
        backward_s=(0.2,),
        update_s=0.6,
    )
    devices = tuple(
        Device(machine=name, device="cpu", host=host, profile=profile, speed=speed)
        for host, (name, speed) in enumerate([("slow", 0.5), ("fast", 1.0)])
    )
    world = World(devices=devices, bandwidths={}, latencies={})
    bound = bound_of(world, (0, 1), batch_size=10)
    # whole() grows with its one point's rate, (0.3 + 0.6) per sample: 9 s alone for ten
    assert (bound.serial_s, bound.parallel_s) == pytest.approx((0.6, 8.4))
    assert bound.workers == pytest.approx(1 + 8.4 / (18 - 1.2))
    assert bound.speed_up == pytest.approx(9 / (0.6 + 8.4 / 1.5))
    assert bound.step_s == pytest.approx(0.6 + 8.4 / 1.5)
    assert bound_of(world, (1,), batch_size=10).speed_up == pytest.approx(1)


def test_what_one_device_takes_alone_is_its_own_bound() -> None:
    """It is a tenth faster while the other rests, and its bound knows."""
    both = [device(machine=name, update_s=0.01, alone=0.9) for name in ("a", "b")]
    measured = AllReduceProfile(
        payload_bytes=(8, 10**6), seconds=(0.001, 0.01), cpu_s=((0.0, 0.0), (0.0, 0.0))
    )
    world = world_of(profile(both, links=(link("a", "b"),), all_reduce=measured))
    facts = NetworkFacts(num_parameters=10, num_buffers=0)
    task = Task(network=facts, batch_size=32)
    predicted = predict(world, task, make_strategy("single", {}), (0,), draws=0)
    assert bound_of(world, (0,), 32).step_s == pytest.approx(predicted.step_s)
    assert predicted.step_s == pytest.approx(0.9 * world.devices[0].whole(32))
