"""Scaling curves of a network from settings: reads the files that they name, then is pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convoy import networks
from convoy.cluster import load_cluster
from convoy.cost import profile as profiles
from convoy.cost.layers import LayerFacts, facts_of, layers_of
from convoy.cost.profile import Profile
from convoy.errors import UsageError
from convoy.scaling.counts import check_counts
from convoy.scaling.hardware import Hardware, check_hardware, find_nodes
from convoy.scaling.points import EXPOSED_ABOVE, ScalingCurve, Workload, scaling_curve
from convoy.strategies import STRATEGIES, Strategy, make_strategy

Network = str | nn.Module | Callable[..., nn.Module]


@dataclass(frozen=True, kw_only=True)
class ScalingSettings:
    """What is to be trained, on how many nodes, of which kind."""

    nodes: Sequence[int]
    """Rising numbers of nodes."""
    hardware: Hardware = field(default_factory=Hardware)
    batch_size: int | None = None
    """Samples of a step over all nodes, or"""
    batch_per_node: int | None = None
    """of each node."""
    image_size: tuple[int, ...] | None = None
    """Channels, height, width; without it the profile's, or the network's published ones."""
    classes: int | None = None
    strategies: Sequence[str] = ("data",)
    strategy_options: Mapping[str, Any] = field(default_factory=dict)
    """Each goes to those strategies that have it."""
    baseline: int = 1
    """The number of nodes that efficiency is relative to."""


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Scaling curves, and what they were drawn for."""

    network: str
    image_size: tuple[int, ...]
    settings: ScalingSettings
    links: dict[str, float | int | str | None]
    """Of the nodes, in bytes/s and seconds."""
    notes: tuple[str, ...]
    curves: tuple[ScalingCurve, ...]

    def to_dict(self) -> dict[str, Any]:
        """As `convoy simulate --json` prints it."""
        settings = self.settings
        return {
            "network": self.network,
            "input": list(self.image_size),
            "batch_size": settings.batch_size,
            "batch_per_node": settings.batch_per_node,
            "baseline": settings.baseline,
            "links": self.links,
            "notes": list(self.notes),
            "exposed_above": EXPOSED_ABOVE,
            "points": [asdict(point) for curve in self.curves for point in curve.points],
            "skipped": [asdict(point) for curve in self.curves for point in curve.skipped],
            "exposed_from": {curve.strategy: curve.exposed_from for curve in self.curves},
            "verdicts": [curve.verdict for curve in self.curves],
        }


def simulate_scaling(network: Network | None, label: str, settings: ScalingSettings) -> Simulation:
    """Draw the curves that `settings` ask for.

    Args:
        network: as for `convoy.train`; None takes the profile's, by its name.
        label: what the network is called.

    Raises:
        UsageError: names the setting, what was expected and what to do.
    """
    _check(settings)
    strategies = _strategies(settings)
    hardware = settings.hardware
    profile = profiles.load(Path(hardware.profile)) if hardware.profile is not None else None
    cluster = load_cluster(hardware.cluster) if hardware.cluster is not None else None
    network, label = _named(network, label, profile)
    shape, classes = _shape_and_classes(network, label, settings, profile)

    def built(size: tuple[int, ...]) -> nn.Module:
        if isinstance(network, nn.Module):
            return network
        assert len(size) == 3
        with torch.device("meta"):
            return networks.build(network, input_shape=(size[0], *size[1:]), num_classes=classes)

    def layers(size: tuple[int, ...]) -> Sequence[LayerFacts]:
        return layers_of(built(size), size)

    found = find_nodes(hardware, profile, cluster, layers, shape)
    workload = Workload(
        network=facts_of(built(shape), shape),
        batch_size=settings.batch_size,
        batch_per_node=settings.batch_per_node,
        optimizer=profile.optimizer if profile else "sgd",
    )
    nodes = found.nodes
    return Simulation(
        network=label,
        image_size=shape,
        settings=settings,
        links={
            "bandwidth_bytes_s": nodes.bandwidth_bytes_s,
            "latency_s": nodes.latency_s,
            "within_bytes_s": nodes.within_bytes_s,
            "per_host": nodes.per_host,
            "all_reduce": nodes.all_reduce,
        },
        notes=found.notes,
        curves=tuple(
            scaling_curve(nodes, workload, strategy, settings.nodes, baseline=settings.baseline)
            for strategy in strategies
        ),
    )


def _check(settings: ScalingSettings) -> None:
    check_counts(settings.nodes, ",".join(map(str, settings.nodes)))
    check_hardware(settings.hardware)
    both = {"--batch-size": settings.batch_size, "--batch-per-node": settings.batch_per_node}
    given = {option: value for option, value in both.items() if value is not None}
    if len(given) != 1:
        raise UsageError(
            f"{' and '.join(given) or 'no batch'}: expected either --batch-size, the samples of a "
            "step over all nodes, or --batch-per-node, those of each"
        )
    for option, value in (*given.items(), ("--baseline", settings.baseline)):
        if value < 1:
            raise UsageError(f"{option} {value}: expected 1 or more")


def _strategies(settings: ScalingSettings) -> list[Strategy]:
    """The strategies by name; an option that one has goes to that one alone."""
    options = settings.strategy_options
    made = []
    for name in dict.fromkeys(settings.strategies):
        kind = STRATEGIES.get(name)
        own = {f.name for f in fields(kind)} if kind else set()  # type: ignore[arg-type]
        others = {
            f.name
            for other in settings.strategies
            if other != name and other in STRATEGIES
            for f in fields(STRATEGIES[other])  # type: ignore[arg-type]
        }
        made.append(
            make_strategy(name, {k: v for k, v in options.items() if k in own or k not in others})
        )
    if not made:
        raise UsageError(f"no --strategy: expected one or more of {', '.join(STRATEGIES)}")
    return made


def _named(network: Network | None, label: str, profile: Profile | None) -> tuple[Network, str]:
    if network is None:
        if profile is None:
            raise UsageError(
                f"no --network: expected one of {', '.join(networks.names())}, or "
                "package.module:function"
            )
        return profile.network.name, profile.network.name
    if profile is not None and label != profile.network.name:
        raise UsageError(
            f"--network {label}: the profile is of {profile.network.name}. Leave --network out, or "
            f"measure {label}: convoy measure"
        )
    return network, label


def _shape_and_classes(
    network: Network, label: str, settings: ScalingSettings, profile: Profile | None
) -> tuple[tuple[int, ...], int]:
    published = networks.published_for(network) if isinstance(network, str) else None
    if profile is not None:
        known: tuple[tuple[int, ...], int] | None = profile.network.input, profile.network.classes
    else:
        known = published
    shape = settings.image_size or (known[0] if known else None)
    if shape is None:
        raise UsageError(
            f"{label} was published for no image size that is known here: say which with "
            "--image-size, as 3x224x224"
        )
    return tuple(shape), settings.classes or (known[1] if known else 10)
