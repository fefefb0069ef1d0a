"""Seconds by number of samples, between and beyond the numbers that were measured."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """What a number of samples takes: measured points, joined by lines.

    Small batches are inefficient, so a curve through few points is far better than a rate. It
    never falls: a point below its predecessor is raised to it, since a device that does more in
    less time is noise. Beyond the last point it goes on as between the last two.

    Raises:
        ValueError: no points, numbers of samples that do not rise, or times that are negative or
            not finite.
    """

    samples: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.samples or len(self.samples) != len(self.seconds):
            raise ValueError(
                f"{len(self.seconds)} times for {len(self.samples)} numbers of samples"
            )
        rising = all(a < b for a, b in itertools.pairwise(self.samples))
        if not rising or self.samples[0] < 1:
            raise ValueError(f"samples {list(self.samples)}: expected rising numbers from 1")
        if not all(0 <= s < float("inf") for s in self.seconds):
            raise ValueError(f"seconds {list(self.seconds)}: expected finite numbers, 0 or more")
        object.__setattr__(self, "seconds", tuple(itertools.accumulate(self.seconds, max)))

    def __call__(self, samples: float) -> float:
        """Seconds for `samples`; what is fewer than the first point costs as much as that."""
        xs, ys = self.samples, self.seconds
        if samples <= xs[0]:
            return ys[0]
        if samples >= xs[-1]:
            return ys[-1] + (samples - xs[-1]) * self._last_slope()
        right = bisect_right(xs, samples)
        left = right - 1
        part = (samples - xs[left]) / (xs[right] - xs[left])
        return min(ys[right], ys[left] + part * (ys[right] - ys[left]))  # whatever rounding does

    def _last_slope(self) -> float:
        overall = self.seconds[-1] / self.samples[-1]
        if len(self.samples) == 1:
            return overall
        rise = self.seconds[-1] - self.seconds[-2]
        last = rise / (self.samples[-1] - self.samples[-2])
        return max(last, 0.8 * overall)  # a rise that noise has flattened is none

    def scaled(self, factor: float) -> Curve:
        """All times multiplied by `factor`."""
        return Curve(self.samples, tuple(s * factor for s in self.seconds))

    def plus(self, seconds: float) -> Curve:
        """Every time longer by `seconds`, which no number of samples changes."""
        return Curve(self.samples, tuple(s + seconds for s in self.seconds))


def total(curves: Sequence[Curve]) -> Curve:
    """The sum of curves that were measured at the same numbers of samples."""
    (samples,) = {curve.samples for curve in curves}
    return Curve(samples, tuple(map(sum, zip(*(c.seconds for c in curves), strict=True))))
