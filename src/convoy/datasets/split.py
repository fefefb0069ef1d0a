"""Hold back one sample in five for testing, class by class, the same ones every time."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

ONE_IN = 5
"""One sample in this many is held back."""


def stratified_split(
    keys: Sequence[str], targets: Sequence[int], *, seed: int
) -> tuple[list[int], list[int]]:
    """Indices to train on and to test on, both ascending; together every index once.

    `keys` name the samples and `targets` are their classes. Each class gives a
    fifth of itself, rounded so that ceil(N/5) are held back in all; the last
    sample of a class is never taken. Which ones is decided by a hash of `seed`
    and key, not by a random generator: it is the same on every machine and with
    every version of every library, and a file that is added later moves no
    other file across.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for index, target in enumerate(targets):
        members[target].append(index)
    test: list[int] = []
    for target, quota in _quotas({t: len(found) for t, found in members.items()}).items():
        order = sorted(members[target], key=lambda index: _rank(seed, keys[index]))
        test.extend(order[:quota])
    held_back = set(test)
    return [index for index in range(len(targets)) if index not in held_back], sorted(test)


def _quotas(sizes: dict[int, int]) -> dict[int, int]:
    """How many each class gives: a fifth rounded down, the rest by largest remainder."""
    quotas = {target: size // ONE_IN for target, size in sizes.items()}
    rest = -(-sum(sizes.values()) // ONE_IN) - sum(quotas.values())
    by_remainder = sorted(sizes, key=lambda target: (-(sizes[target] % ONE_IN), target))
    for target in by_remainder[:rest]:
        if quotas[target] + 1 < sizes[target]:
            quotas[target] += 1
    return quotas


def _rank(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()
