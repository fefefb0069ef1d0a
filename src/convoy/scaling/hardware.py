"""What a node is and what joins it to others: from a profile, a cluster file, or plain figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from convoy.cluster import Cluster, Machine, Network, parse_bandwidth, parse_duration, parse_flops
from convoy.cost.equal_nodes import EqualNodes
from convoy.cost.fabric import AllReduce
from convoy.cost.figures import figured_profile, resized
from convoy.cost.layers import LayerFacts, fingerprint
from convoy.cost.profile import LinkProfile, Profile
from convoy.cost.world import Device, World, world_of
from convoy.errors import ClusterError, ProfileError, UnknownNameError, UsageError

ALL_REDUCES: tuple[str, ...] = get_args(AllReduce)


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What is said of a node and its links; figures are text with a unit."""

    profile: Path | None = None
    """Measured figures; a node is one of its devices."""
    cluster: Path | None = None
    """Describes links, and machines: their likeness to measured ones, or their figures."""
    like: str | None = None
    """Which machine of the cluster file or the profile every node is like."""
    flops: str | None = None
    """What a node achieves: "9.5 TFLOP/s"; in place of a profile."""
    bandwidth: str | None = None
    """Of each host, each way: "10 Gbit/s"."""
    latency: str | None = None
    """One way between hosts: "50 us"."""
    within: str | None = None
    """Bandwidth between nodes of one host: "80 GB/s"."""
    per_host: int | None = None
    """Nodes that share a host and its links."""
    all_reduce: str = "ring"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is known of nodes before their layers are."""

    nodes: EqualNodes
    notes: tuple[str, ...]
    """What was taken for granted."""


def check_hardware(hardware: Hardware) -> AllReduce:
    """Refuse what contradicts itself before anything is read; how sums are formed.

    Raises:
        UsageError: says what to leave out, or what to add.
    """
    for known in get_args(AllReduce):
        if hardware.all_reduce == known:
            break
    else:
        raise UnknownNameError("--all-reduce", hardware.all_reduce, ALL_REDUCES)
    if hardware.profile is not None and hardware.flops is not None:
        raise UsageError(
            f"--flops {hardware.flops} and --profile {hardware.profile} both say how fast a node "
            "is: leave one out"
        )
    if hardware.like is not None and hardware.profile is None and hardware.cluster is None:
        raise UsageError(
            f"--like {hardware.like}: a machine of what? Add --profile FILE or --cluster FILE"
        )
    if hardware.per_host is not None and hardware.per_host < 1:
        raise UsageError(f"--per-host {hardware.per_host}: expected 1 or more nodes on a host")
    result: AllReduce = known
    return result


def find_nodes(
    hardware: Hardware,
    profile: Profile | None,
    cluster: Cluster | None,
    layers: Callable[[tuple[int, ...]], Sequence[LayerFacts]],
    image_size: tuple[int, ...],
) -> Found:
    """The nodes that `hardware` describes.

    Args:
        profile, cluster: what is in its files.
        layers: of the network, by image size.
        image_size: the one that is asked for.

    Raises:
        UsageError: something that is needed is nowhere said, or a machine is unknown.
    """
    all_reduce = check_hardware(hardware)
    machine, reference, speed = _machine(hardware, profile, cluster)
    notes: list[str] = []
    if profile is not None:
        world, pick = _measured(profile, reference, speed, layers, image_size, notes)
    else:
        flops = _figure("--flops", hardware.flops, parse_flops)
        if flops is None and machine is not None:
            flops = machine.flops or _flops_of(cluster, reference, speed)
        if flops is None:
            raise UsageError(
                "how fast a node computes is nowhere said: give --profile FILE (with --like "
                'MACHINE), or --flops "9.5 TFLOP/s", or flops of a machine in a --cluster FILE'
            )
        world, pick = _figured(layers(image_size), flops), 0
        notes.append(
            f"A node achieves {flops / 1e12:.4g} TFLOP/s in every layer; layers without "
            "multiply-adds, loading and the update take no time of their own."
        )
    bandwidth, latency = _links(hardware, profile, cluster, notes)
    per_host = hardware.per_host or (machine.gpus if machine and machine.gpus else 1)
    nodes = EqualNodes(
        world=world,
        pick=pick,
        bandwidth_bytes_s=bandwidth,
        latency_s=latency,
        within_bytes_s=_within(hardware, profile, machine, reference, per_host, notes),
        per_host=per_host,
        all_reduce=all_reduce,
    )
    return Found(nodes=nodes, notes=tuple(notes))


def _machine(
    hardware: Hardware, profile: Profile | None, cluster: Cluster | None
) -> tuple[Machine | None, str, float]:
    """The cluster file's entry, the machine whose figures stand for it, and its relative speed."""
    measured = list(dict.fromkeys(d.machine for d in profile.devices)) if profile else []
    described = [machine.name for machine in cluster.machines] if cluster else []
    names = described or measured
    like = hardware.like
    if like is None:
        if len(names) > 1:
            raise UsageError(
                f"every node is like one machine: say which of {', '.join(names)} with --like"
            )
        like = names[0] if names else ""
    if cluster is not None and like in described:
        reference, speed = cluster.reference(like)
        found: tuple[Machine | None, str, float] = cluster.machine(like), reference.name, speed
    elif like in measured or not names:
        found = None, like, 1.0
    else:
        raise UnknownNameError("machine", like, {*described, *measured})
    if measured and found[1] not in measured:
        raise ProfileError(
            f"{like} has no figures: the profile has none of {found[1]}, only of "
            f"{', '.join(measured)}. Measure it: convoy measure"
        )
    return found


def _measured(
    profile: Profile,
    reference: str,
    speed: float,
    layers: Callable[[tuple[int, ...]], Sequence[LayerFacts]],
    image_size: tuple[int, ...],
    notes: list[str],
) -> tuple[World, int]:
    if profile.all_reduce is None:  # no links are needed to know what all-reduces cost
        ours = tuple(d for d in profile.devices if d.machine == reference)
        profile = replace(profile, devices=ours, links=())
    world = world_of(profile)
    pick = next(i for i, d in enumerate(world.devices) if d.machine == reference)
    device = replace(world.devices[pick], speed=speed)
    before = layers(profile.network.input)
    if fingerprint(before) != profile.network.fingerprint:
        raise ProfileError(
            f"the profile does not fit {profile.network.name}: its layers have changed. Measure "
            "again: convoy measure"
        )
    if tuple(profile.network.input) != image_size:
        device = replace(device, profile=resized(device.profile, before, layers(image_size)))
        notes.append(
            f"Times of layers were measured with images of {_size(profile.network.input)} and are "
            f"scaled by multiply-adds to {_size(image_size)}."
        )
    same = sum(d.machine == reference for d in world.devices)
    which = f" ({device.device}, the first of {same})" if same > 1 else ""
    factor = f", {speed:g} times as fast" if speed != 1 else ""
    notes.append(f"A node is like {reference}{which}{factor}, as measured.")
    devices = (*world.devices[:pick], device, *world.devices[pick + 1 :])
    return replace(world, devices=devices), pick


def _figured(layers: Sequence[LayerFacts], flops: float) -> World:
    profile = figured_profile(layers, flops)
    device = Device(machine=profile.machine, device=profile.device, host=0, profile=profile)
    return World(devices=(device,), bandwidths={}, latencies={})


def _flops_of(cluster: Cluster | None, reference: str, speed: float) -> float | None:
    known = cluster.machine(reference).flops if cluster else None
    return known * speed if known is not None else None


def _links(
    hardware: Hardware, profile: Profile | None, cluster: Cluster | None, notes: list[str]
) -> tuple[float, float]:
    """Bytes/s and seconds between hosts: as said, as the cluster's network, or as measured."""
    bits = _figure("--bandwidth", hardware.bandwidth, parse_bandwidth)
    latency = _figure("--latency", hardware.latency, parse_duration)
    if cluster is not None:
        network = cluster.network
        bits = network.bandwidth_bit_s if bits is None else bits
        latency = network.latency_s if latency is None else latency
    between = [link for link in profile.links if len({*link.between}) == 2] if profile else []
    if between and (bits is None or latency is None):
        slowest: LinkProfile = min(between, key=lambda link: link.bandwidth_bytes_s)
        bits = 8 * slowest.bandwidth_bytes_s if bits is None else bits
        latency = slowest.latency_s if latency is None else latency
        notes.append(f"Links are as measured between {' and '.join(slowest.between)}, the slowest.")
    if bits is None:
        raise UsageError(
            'how fast the links are is nowhere said: give --bandwidth "10 Gbit/s" or a --cluster '
            "FILE"
        )
    if latency is None:
        latency = Network.latency_s
        notes.append(f"Latency is taken to be {latency * 1e3:g} ms one way; --latency says else.")
    return bits / 8, latency


def _within(
    hardware: Hardware,
    profile: Profile | None,
    machine: Machine | None,
    reference: str,
    per_host: int,
    notes: list[str],
) -> float:
    bits = _figure("--within", hardware.within, parse_bandwidth)
    if bits is None and machine is not None:
        bits = machine.within_bit_s
    if bits is not None:
        return bits / 8
    inside = [link for link in profile.links if {*link.between} == {reference}] if profile else []
    if inside:
        return inside[0].bandwidth_bytes_s
    if per_host > 1:
        notes.append("Nodes of one host exchange in no time; --within says how fast they do.")
    return float("inf")


def _figure(option: str, text: str | None, parse: Callable[[str], float]) -> float | None:
    if text is None:
        return None
    try:
        return parse(text)
    except ClusterError as error:
        raise UsageError(f"{option}: {error}") from None


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
