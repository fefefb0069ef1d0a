"""Profiles by hand, for tests of what is planned from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convoy.cost.profile import (
    AllReduceProfile,
    DeviceProfile,
    LinkProfile,
    Profile,
    ProfiledNetwork,
)

SAMPLES = (1, 16, 64)


def device(machine: str = "a", rate_s: float = 0.001, **changes: Any) -> DeviceProfile:
    """A device that takes `rate_s` for a sample, most of it for the backward pass."""
    samples = changes.get("samples", SAMPLES)
    values: dict[str, Any] = {
        "machine": machine,
        "device": "cpu",
        "hardware": "a processor",
        "cores": 1.0,
        "threads": 1,
        "memory_bytes": 2**33,
        "samples": samples,
        "load_s": tuple(0.1 * rate_s * n for n in samples),
        "forward_s": tuple(0.3 * rate_s * n for n in samples),
        "backward_s": tuple(0.6 * rate_s * n for n in samples),
        "update_s": 0.0,
    }
    return DeviceProfile(**(values | changes))


def link(a: str, b: str, bandwidth: float = 1e8, latency_s: float = 1e-4) -> LinkProfile:
    """`bandwidth` in bytes/s."""
    return LinkProfile(between=(a, b), bandwidth_bytes_s=bandwidth, latency_s=latency_s)


def all_reduce(*cpu_s: tuple[float, ...], **changes: Any) -> AllReduceProfile:
    """All-reduces of 1 KB and 1 MB; one row of CPU times per rank."""
    values: dict[str, Any] = {"payload_bytes": (1000, 1_000_000), "seconds": (0.002, 0.03)}
    return AllReduceProfile(**(values | {"cpu_s": cpu_s or ((0.0, 0.0),) * 2} | changes))


def profile(devices: Sequence[DeviceProfile] = (), **changes: Any) -> Profile:
    """Of a network called "net"."""
    network = ProfiledNetwork(name="net", input=(1, 8, 8), classes=10, fingerprint="f00d")
    values: dict[str, Any] = {
        "network": network,
        "precision": "fp32",
        "optimizer": "sgd",
        "memory_format": "contiguous",
        "batch_size": 64,
        "versions": {"convoy": "0.3", "torch": "2.13"},
        "devices": tuple(devices) or (device(),),
    }
    return Profile(**(values | changes))
