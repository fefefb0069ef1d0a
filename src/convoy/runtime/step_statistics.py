"""What many steps of some batch sizes come to: means of phases, how they vary."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

PHASES = ("load", "forward", "backward", "update")
TRIMMED = 0.1
"""What is left out at either end before a mean is taken."""


def mean_of(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean seconds of each phase, over the steps whose totals are not among the extremes."""
    ordered = sorted(steps, key=lambda s: sum(s.values()))
    out = int(TRIMMED * len(ordered))
    kept = ordered[out : len(ordered) - out]
    return {phase: statistics.fmean(s[phase] for s in kept) for phase in PHASES}


def deciles(by_size: Sequence[Sequence[dict[str, float]]]) -> tuple[float, ...]:
    """Deciles (5%, 15%, ... 95%) of steps' times relative to their size's mean."""
    ratios: list[float] = []
    for steps in by_size[-3:]:  # what a run has: not the smallest
        totals = [sum(s.values()) for s in steps]
        mean = sum(mean_of(steps).values())
        ratios += [t / mean for t in totals]
    cuts = statistics.quantiles(ratios, n=20, method="inclusive") if len(ratios) > 1 else [1.0]
    return tuple(cuts[::2])


def smoothed(
    samples: Sequence[int], differences: Sequence[float], *, per_sample: bool
) -> tuple[float, ...]:
    """What being a replica costs at each batch size, out of differences that are mostly noise.

    A replica's hooks cost the same whatever the batch, and small batches show how much, since
    their times scatter least. What it costs per sample, if anything, the large ones show.
    """
    half = (len(samples) + 1) // 2
    fixed = max(0.0, statistics.median(differences[:half]))
    rate = 0.0
    if per_sample:
        pairs = list(zip(samples, differences, strict=True))[-3:]
        rate = max(0.0, statistics.median((d - fixed) / n for n, d in pairs))
    return tuple(fixed + rate * n for n in samples)
