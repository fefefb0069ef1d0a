"""The trained network judged by all who are there, each on a part of the test set."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from convoy.runtime.member_handle import GONE, MemberHandle
from convoy.state import Tensors
from convoy.strategies.shares import cut

LOOK_S = 10.0
"""How often one that judges is asked whether it is there, and"""
ANSWER_S = 60.0
"""how long that may take it."""


def judge(
    tensors: Tensors, members: Sequence[MemberHandle], weights: Sequence[float], num_samples: int
) -> tuple[dict[str, float], list[MemberHandle]]:
    """What a member does not answer, another does.

    Args:
        tensors: the network's state dict.
        weights: by member, how much of the work it can do.

    Returns:
        Sums over the test set ("correct", "loss_sum", "samples"), of fewer than `num_samples` only
        if everyone is lost, and the members that are still there.
    """
    reference, left = ray.put(tensors), list(members)
    counts = cut(num_samples, [max(1, weight) for weight in weights]) if members else []
    firsts = [sum(counts[:i]) for i in range(len(counts))]
    parts = [part for part in zip(firsts, counts, strict=True) if part[1]]
    sums = {"correct": 0.0, "loss_sum": 0.0, "samples": 0.0}
    while parts and left:
        calls = [
            (member, part, member.actor.judge.remote(reference, *part))
            for member, part in zip(itertools.cycle(left), parts, strict=False)
        ]
        parts = []
        for member, part, call in calls:
            try:
                for key, value in _answer(member, call).items():
                    sums[key] += value
            except (*GONE, GetTimeoutError):
                ray.kill(member.actor)
                parts.append(part)
                left = [other for other in left if other is not member]
    return sums, left


def _answer(member: MemberHandle, call: Any) -> dict[str, float]:
    """What it found, however long that takes. Raises GetTimeoutError if it does not react."""
    while not ray.wait([call], timeout=LOOK_S)[0]:
        ray.get(member.actor.clock.remote(), timeout=ANSWER_S)
    found: dict[str, float] = ray.get(call)
    return found
