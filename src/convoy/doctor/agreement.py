"""Whether the nodes of a Ray cluster reach one another and agree: verdicts on a survey."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from itertools import combinations

from convoy.doctor.check import Check
from convoy.doctor.probe import PACKAGES, Answer, version
from convoy.runtime.nodes import Node

MOST_SKEW_S = 0.1
"""Clocks kept by NTP on one local network are within milliseconds of one another."""


def judge_answers(nodes: Sequence[Node], answers: Mapping[str, Answer | str]) -> list[Check]:
    """Every verdict on what the probes of `nodes` said, by node id."""
    names = {node.id: node.name for node in nodes}
    heard = {n: answer for n, answer in answers.items() if isinstance(answer, Answer)}
    silent = [
        Check(
            name=f"node {names[n]}",
            status="problem",
            detail=f"a task on it failed: {answer}",
            advice="Install the same Convoy there, in the environment that `ray start` ran in, "
            "and look at Ray's logs there (/tmp/ray/session_latest/logs).",
        )
        for n, answer in answers.items()
        if isinstance(answer, str)
    ]
    here = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return [
        *silent,
        judge_reach(names, {n: answer.reached for n, answer in heard.items()}),
        judge_versions(
            {"here": here, **{names[n]: answer.versions for n, answer in heard.items()}}
        ),
        judge_clocks({names[n]: (a.offset_s, a.bound_s) for n, a in heard.items()}),
    ]


def judge_reach(
    names: Mapping[str, str], reached: Mapping[str, Mapping[str, float | str]]
) -> Check:
    """Whether every node connected to every other.

    Args:
        names: by node id.
        reached: by node id from which, and to which: seconds, or why it failed.
    """
    pairs = {(names[a], names[b]): took for a, row in reached.items() for b, took in row.items()}
    failed = [f"{a} to {b}: {why}" for (a, b), why in pairs.items() if isinstance(why, str)]
    if failed:
        return Check(
            name="reach",
            status="problem",
            detail=f"{len(failed)} of {len(pairs)} connections failed: {'; '.join(failed)}",
            advice="Let the firewall of the second of each two accept TCP on every port from "
            "the first; where a machine has several addresses, give the one that the others "
            "reach to its `ray start` as --node-ip-address.",
        )
    times = {pair: took for pair, took in pairs.items() if not isinstance(took, str)}
    if not times:
        return Check(name="reach", status="ok", detail="one machine, nothing to reach")
    (a, b), slowest = max(times.items(), key=lambda item: item[1])
    return Check(
        name="reach",
        status="ok",
        detail=f"{len(times)} of {len(times)} connections stood; the slowest, {a} to {b}, "
        f"after {slowest * 1e3:.1f} ms",
    )


def judge_versions(versions: Mapping[str, Mapping[str, str]]) -> Check:
    """Whether all machines have the same of everything: machine, then package, to version."""
    different, slight = [], []
    for package in next(iter(versions.values())):
        found = {machine: installed[package] for machine, installed in versions.items()}
        if len({comparable(package, text) for text in found.values()}) > 1:
            different.append(f"{package}: " + ", ".join(f"{m} {v}" for m, v in found.items()))
        elif len(set(found.values())) > 1:
            slight.append(f"{package}: " + ", ".join(f"{m} {v}" for m, v in found.items()))
    if different:
        return Check(
            name="versions",
            status="problem",
            detail="; ".join(different + slight),
            advice="Install the same versions in each machine's environment and start Ray anew.",
        )
    shown = ", ".join(
        f"{package} {text}" for package, text in next(iter(versions.values())).items()
    )
    detail = f"the same on all: {shown}" + (f" (but {'; '.join(slight)})" if slight else "")
    return Check(name="versions", status="ok", detail=detail)


def comparable(package: str, text: str) -> str:
    """What of a version must be equal: Python's first two numbers; all but the build elsewhere.

    A build is what follows a plus; torch's is +cpu on one machine and +cu128 on another.
    """
    if package == "python":
        return ".".join(text.split(".")[:2])
    return text.partition("+")[0]


def judge_clocks(offsets: Mapping[str, tuple[float, float]]) -> Check:
    """Whether clocks agree: by machine, (offset from this process's clock, its error bound), s."""
    if len(offsets) < 2:
        return Check(name="clock", status="ok", detail="one machine, nothing to compare")
    a, b = max(
        combinations(offsets, 2), key=lambda pair: abs(offsets[pair[0]][0] - offsets[pair[1]][0])
    )
    apart_s = abs(offsets[a][0] - offsets[b][0])
    bound_s = offsets[a][1] + offsets[b][1]
    detail = f"{a} and {b} are furthest apart: {apart_s * 1e3:.1f} ms, ±{bound_s * 1e3:.1f} ms"
    if apart_s - bound_s <= MOST_SKEW_S:
        return Check(name="clock", status="ok", detail=detail)
    return Check(
        name="clock",
        status="warning",
        detail=f"{detail}; times of day in their records will not line up",
        advice="Let NTP keep the clock on both: `timedatectl set-ntp true`.",
    )
