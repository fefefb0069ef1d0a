"""Cutting a whole number of samples into integer shares."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

from convoy.errors import UsageError


def cut(count: int, weights: Sequence[float]) -> list[int]:
    """Integer parts in proportion to `weights` that sum to `count`, exactly.

    Largest remainders (Hamilton's method); ties go to the lower index.
    """
    if count < 0 or not any(weights) or not all(math.isfinite(w) and w >= 0 for w in weights):
        raise UsageError(
            f"cannot cut {count} samples by weights {list(weights)}: expected non-negative "
            "weights, at least one of them above zero"
        )
    # In floating point, remainders that are equal would differ by how they round.
    total = sum(map(Fraction, weights))
    exact = [count * Fraction(w) / total for w in weights]
    parts = [int(e) for e in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: (parts[i] - exact[i], i))
    for i in by_remainder[: count - sum(parts)]:
        parts[i] += 1
    return parts


def finish_together(
    batch_size: int, seconds: Sequence[Callable[[int], float]], *, least: int = 1
) -> tuple[int, ...]:
    """Shares of a batch with which the rank that ends last ends as early as can be.

    Samples go out one by one, each to the rank that would then be done first. The times of all
    ranks at all shares, in ascending order, are thus used up from the smallest, so that no other
    shares with this sum end earlier (exact for times that never fall as shares grow).

    Args:
        batch_size: the sum of the shares.
        seconds: by rank, what a number of samples takes it; never less for more samples.
        least: samples that every rank takes at least.

    Raises:
        UsageError: the batch is smaller than `least` for each.
    """
    num_ranks = len(seconds)
    if batch_size < least * num_ranks or not num_ranks:
        raise UsageError(
            f"a batch of {batch_size} cannot give {num_ranks} workers {least} samples each"
        )
    shares = [least] * num_ranks
    next_end = [(seconds[rank](least + 1), rank) for rank in range(num_ranks)]
    heapq.heapify(next_end)
    for _ in range(batch_size - least * num_ranks):
        _, rank = next_end[0]
        shares[rank] += 1
        heapq.heapreplace(next_end, (seconds[rank](shares[rank] + 1), rank))
    return tuple(shares)


def share_of_each(batch_size: int, weights: Sequence[float]) -> tuple[int, ...]:
    """Shares of a batch in proportion to `weights`, at least one sample each.

    Raises:
        UsageError: there are fewer samples than ranks.
    """
    num_ranks = len(weights)
    if batch_size < num_ranks:
        raise UsageError(
            f"a batch of {batch_size} cannot be shared by {num_ranks} workers: each needs at "
            f"least one sample per step. Use --batch-size {num_ranks} or more, or --workers "
            f"{batch_size}"
        )
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise UsageError(f"shares must be above zero, got {', '.join(f'{w:g}' for w in weights)}")
    parts = cut(batch_size, weights)
    # A very slow rank still takes one, from whoever has the most: of several, the slowest.
    slowest_first = sorted(range(num_ranks), key=lambda i: weights[i])
    while 0 in parts:
        parts[max(slowest_first, key=lambda i: parts[i])] -= 1
        parts[parts.index(0)] += 1
    return tuple(parts)
