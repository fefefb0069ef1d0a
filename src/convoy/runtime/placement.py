"""Where ranks go: starts or joins Ray, and turns machines into places for ranks.

--workers N         a Ray of our own on this machine's loopback, N places
--cluster FILE      the file's machines, found among the nodes of the Ray cluster
--cluster ray       every node of the Ray cluster that this machine belongs to
--cluster ray://H   every node of the one behind that head
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import ray
import torch

from convoy.cluster import Cluster, load_cluster
from convoy.cost.curve import Curve
from convoy.errors import ClusterError, UsageError
from convoy.runtime import ray_session
from convoy.runtime.nodes import Node, join_command, list_nodes, match_machines
from convoy.runtime.observer import Observer
from convoy.runtime.settings import TrainSettings
from convoy.strategies import Worker


@dataclass(frozen=True, kw_only=True)
class Place:
    """A device that a rank can be put on."""

    index: int
    machine: str
    address: str
    """IP address by which the other ranks reach it."""
    node_id: str
    """Ray's name for the machine."""
    device: str
    cores: float
    """Cores of its machine that all places on it may use together."""
    weight: float
    """Speed relative to the other places, as far as it is known."""
    shared: bool
    """Whether others use the cluster too, so that cores are to be reserved."""
    seconds: Curve | None = None
    """What a step takes here by its samples, where that was measured."""

    def worker(self) -> Worker:
        """The place as planning sees it."""
        return Worker(
            index=self.index,
            machine=self.machine,
            device=self.device,
            weight=self.weight,
            seconds=self.seconds,
        )


@contextmanager
def places(
    settings: TrainSettings, observer: Observer, *, verbose: bool = False
) -> Iterator[list[Place]]:
    """Start or join Ray, yield its places, and leave it as it was found.

    The observer is told of machines that are described only by their likeness to others.

    Raises:
        ClusterError: machines that are not there; a Ray that cannot be joined.
        UsageError: more or fewer shares than places.
    """
    cluster = cluster_of(settings)
    absent = [m.name for m in cluster.machines if m.hypothetical] if cluster else []
    if absent:
        observer.say(f"only planned for, since not there: {', '.join(absent)}")
    with ray_session.session():
        yield _with_shares(_find(settings, verbose=verbose), settings)


def cluster_of(settings: TrainSettings) -> Cluster | None:
    """The cluster file's content, where --cluster names a file."""
    named = settings.cluster
    if named is None or named == "ray" or named.startswith("ray://"):
        return None
    return load_cluster(Path(named))


def places_now(settings: TrainSettings) -> list[Place]:
    """Places on all machines that the settings are about and that are there now.

    Raises:
        ConvoyError: the cluster file cannot be read, or does not fit what is there.
    """
    if settings.cluster is None:
        return []
    nodes = list_nodes()
    cluster = cluster_of(settings)
    if cluster is None:
        return _of_nodes(nodes)
    return _of_machines(cluster, match_machines(cluster.real_machines, nodes))


def _find(settings: TrainSettings, *, verbose: bool) -> list[Place]:
    if settings.cluster is None:
        return _local(settings.workers, verbose=verbose)
    if settings.cluster == "ray" or settings.cluster.startswith("ray://"):
        _connect(settings.cluster, None, verbose=verbose)
        return _of_nodes(list_nodes())
    cluster = load_cluster(Path(settings.cluster))
    machines = cluster.real_machines
    if len(machines) == 1 and not _ray_is_known():
        workers = max(1, machines[0].gpus)
        return _local(workers, name=machines[0].name, verbose=verbose)
    _connect("ray", cluster, verbose=verbose)
    return _of_cluster(settings, cluster, list_nodes())


def _local(workers: int | None, *, name: str = "", verbose: bool) -> list[Place]:
    """Places on this machine, in a Ray of their own that only loopback reaches."""
    cores = len(os.sched_getaffinity(0))
    gpus = torch.cuda.device_count()
    count = workers or gpus or max(2, cores // 2)
    ray_session.start_local(count, verbose=verbose)
    node = list_nodes()[0]
    return [
        Place(
            index=index,
            machine=name or platform.node(),
            address="127.0.0.1",  # whatever Ray itself prefers
            node_id=node.id,
            device="cuda:0" if index < gpus else "cpu",
            cores=cores,
            weight=1.0,
            shared=False,
        )
        for index in range(count)
    ]


def _of_cluster(settings: TrainSettings, cluster: Cluster, nodes: list[Node]) -> list[Place]:
    """One place per GPU of each machine of the file, or one for its cores."""
    matched = match_machines(cluster.real_machines, nodes)
    missing = [m for m in cluster.real_machines if m.name not in matched]
    if missing:
        address = ray.get_runtime_context().gcs_address
        commands = "; ".join(f"on {m.name}: {join_command(m, address)}" for m in missing)
        raise ClusterError(
            f"{settings.cluster} names {', '.join(m.name for m in missing)}, which the Ray "
            f"cluster at {address} does not have. It has "
            f"{', '.join(f'{n.name} ({n.address})' for n in nodes)}. Run {commands}"
        )
    return _of_machines(cluster, matched)


def _of_machines(cluster: Cluster, matched: Mapping[str, Node]) -> list[Place]:
    """Places on those of a cluster's machines that have a node."""
    # Cores say nothing about a GPU: without a measurement, all count alike beside one.
    mixed = any(machine.gpus for machine in cluster.real_machines)
    found: list[Place] = []
    for machine in cluster.real_machines:
        node = matched.get(machine.name)
        if node is None:
            continue
        for device in ["cuda:0"] * machine.gpus or ["cpu"]:
            found.append(
                Place(
                    index=len(found),
                    machine=machine.name,
                    address=node.address,
                    node_id=node.id,
                    device=device,
                    cores=machine.cpus,
                    weight=machine.speed * (1.0 if mixed else machine.cpus),
                    shared=False,
                )
            )
    return found


def _of_nodes(nodes: list[Node]) -> list[Place]:
    """One place per GPU of each node, or one for its cores."""
    mixed = any(node.gpus for node in nodes)
    found: list[Place] = []
    for node in nodes:
        for device in ["cuda:0"] * int(node.gpus) or ["cpu"] * bool(node.cpus):
            found.append(
                Place(
                    index=len(found),
                    machine=node.name,
                    address=node.address,
                    node_id=node.id,
                    device=device,
                    cores=node.cpus,
                    weight=1.0 if mixed else node.cpus,
                    shared=True,
                )
            )
    if not found:
        raise ClusterError(
            "the Ray cluster has no node with cores to use. Start one with `ray start`, or use "
            "--workers N for this machine alone"
        )
    return found


def _with_shares(found: list[Place], settings: TrainSettings) -> list[Place]:
    if settings.shares is None:
        return found
    if len(settings.shares) != len(found):
        raise UsageError(
            f"--shares gives {len(settings.shares)} shares for {len(found)} workers: expected "
            f"one for each of {', '.join(f'{p.machine} ({p.device})' for p in found)}"
        )
    return [
        replace(place, weight=share) for place, share in zip(found, settings.shares, strict=True)
    ]


def threads_at(place: Place, taking_part: Sequence[Place], settings: TrainSettings) -> int:
    """Threads of the rank at `place`, so that ranks together do not ask for more than there is."""
    neighbours = sum(1 for other in taking_part if other.node_id == place.node_id)
    return settings.threads_per_worker or max(1, int(place.cores / neighbours))


def _ray_is_known() -> bool:
    return ray.is_initialized() or "RAY_ADDRESS" in os.environ


def _connect(address: str, cluster: Cluster | None, *, verbose: bool) -> None:
    """Join a Ray cluster that runs already."""
    target = "auto" if address == "ray" else address
    try:
        ray_session.join(target, verbose=verbose)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        head = cluster.real_machines[0].name if cluster else "one machine"
        raise ClusterError(
            f"cannot join the Ray cluster at {target!r}: {reason}. Start one with `ray start "
            f"--head` on {head} and `ray start --address=HOST:6379` on the others, then run "
            f"this on one of them; `convoy doctor --cluster {address}` tells more"
        ) from None
