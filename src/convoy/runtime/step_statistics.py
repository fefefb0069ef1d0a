"""What many steps of some batch sizes come to: means of phases, how they vary."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

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
    return cuts_of(ratios)


def cuts_of(ratios: Sequence[float]) -> tuple[float, ...]:
    """Deciles (5%, 15%, ... 95%) of `ratios`; of fewer than two, 1."""
    if len(ratios) < 2:
        return (1.0,)
    return tuple(statistics.quantiles(ratios, n=20, method="inclusive")[::2])


def levelled(rounds: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Seconds by batch size, from rounds in each of which all sizes were timed.

    A machine is faster in one round than in another (who shares it, heat). Each round's times are
    therefore put on the level of all before sizes are averaged, a tenth left out at either end:
    so that a slow moment makes no size look slower than its neighbours.
    """
    sizes = list(rounds[0])
    middle = {size: statistics.median(r[size] for r in rounds) for size in sizes}
    levels = [statistics.median(r[size] / middle[size] for size in sizes) for r in rounds]
    mean_level = statistics.fmean(levels)
    found = {}
    for size in sizes:
        times = sorted(r[size] / level for r, level in zip(rounds, levels, strict=True))
        out = int(TRIMMED * len(times))
        found[size] = statistics.fmean(times[out : len(times) - out]) * mean_level
    return found


def smoothed(
    differences: Mapping[int, float], samples: Sequence[int], *, per_sample: bool
) -> tuple[float, ...]:
    """What being a replica costs at `samples`, out of differences that are mostly noise.

    A replica's hooks cost the same whatever the batch, and small batches show how much, since
    their times scatter least. What it costs per sample, if anything, the large ones show.
    """
    half = (len(differences) + 1) // 2
    fixed = max(0.0, statistics.median(list(differences.values())[:half]))
    rate = 0.0
    if per_sample:
        pairs = list(differences.items())[-3:]
        rate = max(0.0, statistics.median((d - fixed) / n for n, d in pairs))
    return tuple(fixed + rate * n for n in samples)
