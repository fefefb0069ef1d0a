"""Where profiles are kept, and which of their devices a place is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from convoy.cluster import parse_cluster
from convoy.cost.profile import DeviceProfile, Profile, ProfiledNetwork
from convoy.errors import ProfileError
from convoy.runtime.placement import Place
from convoy.runtime.profiles import cache_path, check_cores, links_of, positions
from convoy.runtime.settings import TrainSettings

PAIR = '[[machine]]\nname = "a"\n\n[[machine]]\nname = "b"\n\n[network]\nbandwidth = "{}"\n'


def device(machine: str, **changes: Any) -> DeviceProfile:
    values: dict[str, Any] = {"machine": machine, "device": "cpu", "hardware": "a processor"}
    values |= {"cores": 1.0, "threads": 1, "memory_bytes": 2**33, "update_s": 0.0}
    values |= {"samples": (1,), "load_s": (0.1,), "forward_s": (0.1,), "backward_s": (0.1,)}
    return DeviceProfile(**(values | changes))


def profile(*machines: str) -> Profile:
    network = ProfiledNetwork(name="net:3", input=(1, 8, 8), classes=10, fingerprint="f00d")
    return Profile(
        network=network,
        precision="fp32",
        optimizer="sgd",
        memory_format="auto",
        batch_size=64,
        versions={},
        devices=tuple(map(device, machines)),
    )


def place(index: int, machine: str) -> Place:
    return Place(
        index=index,
        machine=machine,
        address="127.0.0.1",
        node_id="node",
        device="cpu",
        cores=1.0,
        weight=1.0,
        shared=False,
    )


def test_places_are_found_by_machine_and_number() -> None:
    places = [place(0, "b"), place(1, "a"), place(2, "a")]
    assert positions(profile("a", "b", "a"), places) == [1, 0, 2]
    assert positions(profile("a", "b", "c"), [place(0, "c")]) == [2]


def test_other_links_are_other_figures(tmp_path: Path) -> None:
    """A profile that was taken over one link is not looked at for another."""
    kept = set()
    for bandwidth in ("1 Gbit/s", "10 Mbit/s"):
        path = tmp_path / "cluster.toml"
        path.write_text(PAIR.format(bandwidth))
        kept.add(cache_path(profile("a", "b"), links_of(TrainSettings(cluster=str(path)))))
    assert len(kept) == 2
    assert all(path.name.startswith("net-3-") for path in kept)


def test_other_machines_or_layouts_are_other_figures() -> None:
    two = profile("a", "b")
    others = [profile("a"), profile("a", "c"), replace(two, memory_format="contiguous")]
    others.append(replace(two, devices=(device("a"), device("b", cores=2.0))))
    assert len({cache_path(p) for p in (two, *others)}) == 5
    assert cache_path(two) == cache_path(replace(two, batch_size=512))


def test_a_machine_with_other_cores_than_it_was_measured_with() -> None:
    cluster = parse_cluster(PAIR.format("1 Gbit/s").replace('"b"', '"b"\ncpus = 4'))
    check_cores(profile("a"), cluster)
    with pytest.raises(ProfileError, match="b was measured with 1 cores.*gives it 4"):
        check_cores(profile("a", "b"), cluster)
