"""Worlds whose best plans can be worked out by hand.

A device takes `rate_s` for each sample and has a core to spare, the network is one layer, and no
all-reduce was measured, so that a step of `data` takes

    the longest of rate_s x share  +  2 (n - 1) / n x bytes / bandwidth  +  2 (n - 1) x latency
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convoy.cost.layers import NetworkFacts
from convoy.cost.profile import DeviceProfile, LinkProfile, Profile, ProfiledNetwork
from convoy.cost.world import World, world_of
from convoy.planner import Task
from convoy.strategies import Strategy, make_strategy

BATCH = 120
SINGLE, DATA = make_strategy("single", {}), make_strategy("data", {"batch_norm": "local"})
BOTH: tuple[Strategy, ...] = (SINGLE, DATA)


def device(machine: str, rate_s: float, **changes: Any) -> DeviceProfile:
    samples = (1, BATCH)
    values: dict[str, Any] = {
        "machine": machine,
        "device": "cpu",
        "hardware": "a processor",
        "cores": 2.0,
        "threads": 1,
        "memory_bytes": 2**33,
        "samples": samples,
        "load_s": (0.0, 0.0),
        "forward_s": tuple(0.4 * rate_s * n for n in samples),
        "backward_s": tuple(0.6 * rate_s * n for n in samples),
        "update_s": 0.0,
    }
    return DeviceProfile(**(values | changes))


def world(
    rates: Sequence[float],
    bandwidth: float = 1e8,
    latency_s: float = 0.0,
    *,
    slow: Mapping[int, float] | None = None,
    machines: Sequence[str] = (),
    **changes: Any,
) -> World:
    """Devices of these rates, each on its own machine; those in `slow` behind that bandwidth."""
    names = list(machines) or [f"m{i}" for i in range(len(rates))]
    links = {}
    for i, a in enumerate(names):
        for j, b in enumerate(names[:i]):
            least = min(bandwidth, *((slow or {}).get(k, bandwidth) for k in (i, j)))
            links[frozenset((a, b))] = LinkProfile(
                between=(a, b), bandwidth_bytes_s=1e12 if a == b else least, latency_s=latency_s
            )
    devices = [device(name, rate, **changes) for name, rate in zip(names, rates, strict=True)]
    return world_of(
        Profile(
            network=ProfiledNetwork(name="net", input=(1, 1, 1), classes=2, fingerprint=""),
            precision="fp32",
            optimizer="sgd",
            memory_format="contiguous",
            batch_size=BATCH,
            versions={},
            devices=tuple(devices),
            links=tuple(links.values()),
        )
    )


def task(num_parameters: int = 250_000, **changes: Any) -> Task:
    """A megabyte of gradients."""
    facts = NetworkFacts(num_parameters=num_parameters, num_buffers=0)
    values: dict[str, Any] = {"network": facts, "batch_size": BATCH}
    return Task(**(values | changes))


def step_s(
    rates: Sequence[float], num_bytes: float, bandwidth: float = 1e8, latency_s: float = 0.0
) -> float:
    """A step of devices of these rates, by the formula."""
    n = len(rates)
    ends = sorted(rate * share for rate in rates for share in range(1, BATCH + 1))
    # with whole samples: the first moment by which all of them are done
    work = max(ends[BATCH - 1], max(rates))
    return work + 2 * (n - 1) / n * num_bytes / bandwidth + 2 * (n - 1) * latency_s
