"""Whether the Ray cluster that is to be used is there, with every machine that should be."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from convoy.cluster import Machine, load_cluster
from convoy.doctor.agreement import judge_answers
from convoy.doctor.check import Check, DoctorOptions, one_line
from convoy.doctor.local_ray import LocalRay, find_local_ray
from convoy.doctor.probe import connect, gcs_address, survey
from convoy.errors import ClusterError
from convoy.interfaces import is_loopback
from convoy.runtime.nodes import Node, identity, join_command, list_nodes, match_machines

GCS_PORT = 6379
"""Where the nodes of a Ray cluster find its head, unless `ray start --head` said otherwise."""
CLIENT_PORT = 10001
"""Where a Ray head listens for ray://, likewise."""
# Ray 2.59 and newer ask for a token as soon as one exists on the head, and any ray.init() that
# started a Ray of its own has made one; but a second machine asks with one only when told to.
TOKEN_ADVICE = (
    "If the head printed that token authentication is enabled, put what `ray get-auth-token` "
    "prints there into ~/.ray/auth_token here (chmod 600), and `export RAY_AUTH_MODE=token`."
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """The Ray cluster to connect to."""

    address: str
    """What ray.init is given."""
    endpoint: str | None
    """HOST:PORT that must answer first; None where a Ray runs on this very machine."""


def check_cluster(options: DoctorOptions) -> list[Check]:
    """Everything about the cluster that `options` names; a single check if it names none.

    A connection to Ray that this process has already is used, and left as it is.
    """
    if options.cluster is None:
        return [Check(name="clock", status="ok", detail="one machine, nothing to compare")]
    machines: Sequence[Machine] = ()
    if options.cluster != "ray" and not options.cluster.startswith("ray://"):
        try:
            machines = load_cluster(options.cluster).real_machines
        except ClusterError as error:
            return [refusal(one_line(error), "Correct the file, or name another.")]
    if ray.is_initialized():
        return examine_nodes(machines, options.timeout_s)
    target = find_target(options, find_local_ray())
    if target is None and len(machines) == 1:
        detail = f"one machine, {machines[0].name}; it needs no Ray cluster"
        return [Check(name="cluster", status="ok", detail=detail)]
    if target is None:
        nowhere = "no Ray runs on this machine, and nothing here says where one does"
        return [refusal(nowhere, starting(machines))]
    obstacle = try_endpoint(target, machines) or enter(target)
    if obstacle is not None:
        return [obstacle]
    try:
        return examine_nodes(machines, options.timeout_s)
    finally:
        ray.shutdown()


def examine_nodes(machines: Sequence[Machine], timeout_s: float) -> list[Check]:
    """The verdicts on the Ray cluster that this process is connected to; takes about 2 s."""
    nodes = list_nodes()
    with_token = os.environ.get("RAY_AUTH_MODE") == "token"
    checks = judge_machines(machines, nodes, gcs_address(), with_token=with_token)
    return checks + judge_answers(nodes, survey(nodes, timeout_s))


def refusal(detail: str, advice: str) -> Check:
    """The one verdict when there is no cluster to examine."""
    return Check(name="cluster", status="problem", detail=detail, advice=advice)


def enter(target: Target) -> Check | None:
    """Connect to Ray; why it will not, or None. Ray itself gives up after some 20 s."""
    try:
        ray.init(address=target.address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        detail = f"no connection to Ray at {target.endpoint or 'this machine'}: {one_line(error)}"
        elsewhere = "Ask on one of its machines, or through its head: --cluster ray://HOST."
        return refusal(detail.partition(". ")[0], f"{elsewhere} {TOKEN_ADVICE}")
    return None


def find_target(options: DoctorOptions, local: LocalRay) -> Target | None:
    """The Ray cluster that is meant; None if nothing on this machine knows of one."""
    if options.cluster is not None and options.cluster.startswith("ray://"):
        return explicit(options.cluster)
    named = options.address or local.environment
    if named is not None and named != "auto":
        return explicit(named)
    if local.processes:
        return Target(address="auto", endpoint=None)
    if local.recorded is not None:
        return Target(address="auto", endpoint=local.recorded)
    return None


def explicit(address: str) -> Target:
    """ray://HOST[:PORT] or HOST[:PORT], with the usual port where none is given."""
    client = address.startswith("ray://")
    endpoint = address.removeprefix("ray://")
    if ":" not in endpoint or endpoint.endswith("]"):
        endpoint = f"{endpoint}:{CLIENT_PORT if client else GCS_PORT}"
    return Target(address="ray://" * client + endpoint, endpoint=endpoint)


def try_endpoint(target: Target, machines: Sequence[Machine]) -> Check | None:
    """Why nothing answers at `target`, found in seconds where Ray takes a minute; or None."""
    if target.endpoint is None:
        return None
    host, _, port = target.endpoint.rpartition(":")
    if not port.isdigit():
        return refusal(f"{target.address!r} is no address of a Ray cluster", "Write HOST:PORT.")
    answer = connect((host.strip("[]"), int(port)))
    if isinstance(answer, str):
        return refusal(f"no answer from Ray at {target.endpoint}: {answer}", starting(machines))
    return None


def starting(machines: Sequence[Machine]) -> str:
    """How to make a Ray cluster of `machines`, the first of which becomes its head."""
    if not machines:
        return (
            f"On one machine run `ray start --head --port={GCS_PORT}`, on each other one "
            f"`ray start --address=THE_FIRST:{GCS_PORT}`, then ask again on one of them."
        )
    head, *others = machines
    at = head.address or "THE_ADDRESS_OF_" + head.name
    commands = [f"on {head.name} `ray start --head --port={GCS_PORT}{identity(head)}`"]
    commands += [f"on {m.name} `{join_command(m, f'{at}:{GCS_PORT}')}`" for m in others]
    return f"Run {', '.join(commands)}, then ask again on one of them. {TOKEN_ADVICE}"


def judge_machines(
    machines: Sequence[Machine], nodes: Sequence[Node], gcs: str, *, with_token: bool
) -> list[Check]:
    """Whether every machine of the file (none: any will do) is a node, and has what it says.

    Args:
        machines: the file's real ones.
        nodes: Ray's living ones.
        gcs: HOST:PORT at which others join.
        with_token: whether they must show a token to join.
    """
    shown = ", ".join(f"{node.name} ({node.address})" for node in nodes)
    found = f"Ray at {gcs} has {len(nodes)} node{'s' * (len(nodes) != 1)}: {shown}"
    matched = match_machines(machines, nodes)
    checks = []
    for machine in machines:
        if machine.name not in matched:
            checks.append(missing(machine, found, gcs, with_token=with_token))
        else:
            checks += judge_resources(machine, matched[machine.name])
    if not checks:
        spare = len(nodes) - len(matched) if machines else 0
        detail = found + (f"; {spare} of them are not in the file" if spare else "")
        checks = [Check(name="cluster", status="ok", detail=detail)]
    return checks


def missing(machine: Machine, found: str, gcs: str, *, with_token: bool) -> Check:
    """The verdict on a machine that is no node yet."""
    command = join_command(machine, gcs)
    advice = f"Run there: `{command}`"
    if with_token:
        advice = (
            f"Run there: `RAY_AUTH_MODE=token {command}`, having put into its ~/.ray/auth_token "
            "what `ray get-auth-token` prints here"
        )
    if reaches_itself_only(gcs):
        advice = (
            "Its head listens on loopback only, so start it anew: `ray stop`, then "
            f"`ray start --head --port={GCS_PORT} --node-ip-address=ITS_ADDRESS`, and on "
            f"{machine.name} `{join_command(machine, f'ITS_ADDRESS:{GCS_PORT}')}`"
        )
    return Check(
        name=f"machine {machine.name}",
        status="problem",
        detail=f"{machine.name} is not in the Ray cluster; {found}",
        advice=f"{advice}.",
    )


def reaches_itself_only(gcs: str) -> bool:
    """Whether HOST of HOST:PORT is a loopback address."""
    try:
        return is_loopback(gcs.rpartition(":")[0].strip("[]"))
    except ClusterError:  # a host name
        return False


def judge_resources(machine: Machine, node: Node) -> list[Check]:
    """What the file promises and the node does not have; empty if it has all."""
    checks = []
    for kind, promised, there in (
        ("gpu", machine.gpus, node.gpus),
        ("cpu", machine.cpus, node.cpus),
    ):
        if promised > there:
            checks.append(
                Check(
                    name=f"machine {machine.name}",
                    status="problem" if kind == "gpu" else "warning",
                    detail=f"the file says {kind}s = {promised:g}, Ray's node {node.name} "
                    f"has {there:g}",
                    advice="Correct the file, or start Ray there with "
                    f"--num-{kind}s={math.ceil(promised)}.",
                )
            )
    return checks
