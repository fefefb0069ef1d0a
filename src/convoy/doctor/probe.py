"""An actor on every node of a Ray cluster, and what all of them find out together.

probes: A ──▶ B        each listens on a port that the system gives, as gloo would,
        A ◀── B        and connects to all the others
driver: t0 ──▶ node's clock ──▶ t1     five times; the quickest exchange counts
"""

from __future__ import annotations

import importlib.metadata
import ipaddress
import platform
import re
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from convoy.doctor.check import one_line
from convoy.runtime.nodes import Node

PACKAGES = ("torch", "ray", "convoy-cnn")
CONNECT_TIMEOUT_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the probe on one node said."""

    versions: Mapping[str, str]
    """Of python and PACKAGES; 'missing' where not installed."""
    offset_s: float
    """That node's clock minus this process's."""
    bound_s: float
    """The most by which `offset_s` may be wrong: half the round trip."""
    reached: Mapping[str, float | str]
    """By node id: seconds to connect, or why it failed."""


class Probe:
    """Runs on one node, holding a socket that the others may connect to."""

    def __init__(self, address: str) -> None:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
        self.listener = socket.create_server((address, 0), family=family, backlog=256)

    def port(self) -> int:
        """Where this node listens; the system completes connections without our doing."""
        return int(self.listener.getsockname()[1])

    def versions(self) -> dict[str, str]:
        """What is installed on this node."""
        return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}

    def now(self) -> float:
        """This node's clock, in seconds since 1970."""
        return time.time()

    def reach(self, targets: dict[str, tuple[str, int]]) -> dict[str, float | str]:
        """Connect to every target at once: seconds that each took, or why it failed."""
        with ThreadPoolExecutor(max_workers=max(1, min(32, len(targets)))) as pool:
            return dict(zip(targets, pool.map(connect, targets.values()), strict=True))


def version(package: str) -> str:
    """The installed version of `package`; reading it imports nothing, which takes seconds."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def connect(target: tuple[str, int]) -> float | str:
    """Seconds until a TCP connection to (address, port) stood, or why it does not."""
    started = time.perf_counter()
    try:
        with socket.create_connection(target, timeout=CONNECT_TIMEOUT_S):
            return time.perf_counter() - started
    except OSError as error:
        return one_line(error)


def gcs_address() -> str:
    """HOST:PORT at which further nodes join the Ray cluster that this process is in."""
    return str(ray.get_runtime_context().gcs_address)


def survey(nodes: Sequence[Node], timeout_s: float) -> dict[str, Answer | str]:
    """What the probe on each node found, by node id; text says why one did not answer.

    Each of the four rounds ends after `timeout_s`, and a node that misses one is left out of
    the next. The probes are gone afterwards.
    """
    actor = ray.remote(Probe)
    probes = {
        node.id: actor.options(
            num_cpus=0,  # so that a node whose cores are all taken answers too
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        ).remote(node.address)
        for node in nodes
    }
    silent: dict[str, str] = {}
    try:
        ports = gather({n: probe.port.remote() for n, probe in probes.items()}, timeout_s, silent)
        targets = {node.id: (node.address, ports[node.id]) for node in nodes if node.id in ports}
        others = {n: {o: target for o, target in targets.items() if o != n} for n in targets}
        reached = gather({n: probes[n].reach.remote(others[n]) for n in targets}, timeout_s, silent)
        versions = gather({n: probes[n].versions.remote() for n in reached}, timeout_s, silent)
        clocks = {n: read_clock(probes[n], timeout_s, n, silent) for n in versions}
    finally:
        for probe in probes.values():
            ray.kill(probe)
    answers: dict[str, Answer | str] = dict(silent)
    for n, samples in clocks.items():
        if n not in silent:
            offset_s, bound_s = clock_offset(samples)
            answers[n] = Answer(
                versions=versions[n], offset_s=offset_s, bound_s=bound_s, reached=reached[n]
            )
    return answers


def gather(
    references: Mapping[str, Any], timeout_s: float, silent: dict[str, str]
) -> dict[str, Any]:
    """The values that arrive within `timeout_s`; why the others do not goes into `silent`."""
    values = {}
    waiting = list(references.values())
    ready = ray.wait(waiting, num_returns=len(waiting), timeout=timeout_s)[0] if waiting else []
    for n, reference in references.items():
        if reference not in ready:
            silent[n] = f"no answer within {timeout_s:g} s"
            continue
        try:
            values[n] = ray.get(reference, timeout=timeout_s)
        except ray.exceptions.RayError as error:
            silent[n] = cause(error)
    return values


def cause(error: BaseException) -> str:
    """What really happened: Ray wraps it in a traceback whose last line tells."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return one_line(telling[-1] if telling else error)


def read_clock(
    probe: Any, timeout_s: float, node: str, silent: dict[str, str]
) -> list[tuple[float, float, float]]:
    """Five readings of a node's clock: (sent, that clock, received), all in seconds."""
    samples = []
    for _ in range(5):
        sent = time.time()
        answer = gather({node: probe.now.remote()}, timeout_s, silent)
        if node not in answer:
            break
        samples.append((sent, answer[node], time.time()))
    return samples


def clock_offset(samples: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """(offset, its error bound) in seconds, from the exchange with the shortest round trip.

    As NTP does (RFC 5905, section 8): the remote clock is taken to have been read midway, which
    is wrong by half the round trip at most.
    """
    sent, remote, received = min(samples, key=lambda sample: sample[2] - sample[0])
    return remote - (sent + received) / 2, (received - sent) / 2
