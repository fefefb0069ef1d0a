"""The nodes of a Ray cluster, and which machine of a cluster file each of them is."""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import ray

from convoy.cluster import Machine


@dataclass(frozen=True, kw_only=True)
class Node:
    """A living node of a Ray cluster."""

    id: str
    name: str
    """From `ray start --node-name`; the address if none was given."""
    address: str
    host: str
    cpus: float
    """Of Ray's own counting (`--num-cpus`)."""
    gpus: float


def list_nodes() -> list[Node]:
    """The living nodes of the cluster that this process is connected to, head first."""
    return [
        Node(
            id=node["NodeID"],
            name=node.get("NodeName") or node["NodeManagerAddress"],
            address=node["NodeManagerAddress"],
            host=node["NodeManagerHostname"],
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
        )
        for node in sorted(
            ray.nodes(), key=lambda n: "node:__internal_head__" not in n["Resources"]
        )
        if node["Alive"]
    ]


def match_machines(machines: Sequence[Machine], nodes: Sequence[Node]) -> dict[str, Node]:
    """Which node each machine is, by machine's name; a missing machine is missing here.

    Names that someone gave say more than addresses, and those more than host names, which
    several nodes may share (containers, network namespaces).
    """
    matched: dict[str, Node] = {}
    for same in (
        lambda machine, node: machine.name == node.name,
        lambda machine, node: machine.address == node.address,
        lambda machine, node: node.host in (machine.name, machine.address),
    ):
        for machine in machines:
            taken = {node.id for node in matched.values()}
            free = [node for node in nodes if node.id not in taken and same(machine, node)]
            if machine.name not in matched and free:
                matched[machine.name] = free[0]
    return matched


def join_command(machine: Machine, gcs: str) -> str:
    """What to run on `machine` so that it joins the Ray cluster whose head is at `gcs`."""
    return f"ray start --address={gcs}{identity(machine)}"


def identity(machine: Machine) -> str:
    """The options that let Ray's node be known for `machine`."""
    options = f" --node-name={shlex.quote(machine.name)}"
    with suppress(ValueError):  # a host name, or none: Ray then finds the address itself
        options += f" --node-ip-address={ipaddress.ip_address(machine.address or '')}"
    return options
