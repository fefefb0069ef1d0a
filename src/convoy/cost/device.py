"""A device that may take part in training, and what its work takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from convoy.cost.curve import Curve
from convoy.cost.profile import DeviceProfile
from convoy.cost.schedule import Compute

_PARTS = 1000
"""Into how many steps a layer is divided where it is computed in parts."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device that may take part in training, and what its work takes."""

    machine: str
    device: str
    host: int
    """Which machine of the world it is on."""
    profile: DeviceProfile
    speed: float = 1.0
    """How many times as fast as the one that was measured."""
    measured_as: int = 0
    """Its position in the profile."""

    @cached_property
    def whole(self) -> Curve:
        """Seconds of a step alone: loading, forward, backward, update."""
        profile = self.profile
        phases = (profile.load_s, profile.forward_s, profile.backward_s)
        sums = tuple(profile.update_s + sum(s) for s in zip(*phases, strict=True))
        return Curve(profile.samples, sums).scaled(1 / self.speed)

    @cached_property
    def replica(self) -> Curve:
        """Seconds that a step takes longer for one who exchanges gradients."""
        profile = self.profile
        extra = profile.replica_s or (0.0,) * len(profile.samples)
        return Curve(profile.samples, extra).scaled(1 / self.speed)

    def seconds(self, compute: Compute) -> float:
        """What `compute` takes here while the other devices work too."""
        return self._whole(compute) * self.relative(compute.layer, compute.part) * compute.portion

    def relative(self, layer: str, part: float) -> float:
        """Time of a part of a layer relative to all of it: measured of a convolution's filters."""
        if part in (0.0, 1.0):
            return part
        key = ("part", layer)
        if key not in self._curves:
            self._curves[key] = _curve_of_parts(self.profile, layer)
        return self._curves[key](1 + _PARTS * part)

    def _whole(self, compute: Compute) -> float:
        if compute.phase in ("update", "average", "accumulate"):
            seconds: float = getattr(self.profile, f"{compute.phase}_s")
            return seconds / self.speed
        if compute.phase == "replica":
            return self.replica(compute.samples)
        return self._curve(compute.phase, compute.layer)(compute.samples)

    @cached_property
    def _curves(self) -> dict[tuple[str, str], Curve]:
        return {}

    def _curve(self, phase: str, layer: str) -> Curve:
        key = (phase, layer)
        if key not in self._curves:
            if layer:
                seconds = getattr(self.profile.layer(layer), f"{phase}_s")
                curve = Curve(self.profile.samples, seconds)
            else:
                curve = self.profile.curve(phase)
            self._curves[key] = curve.scaled(1 / self.speed)
        return self._curves[key]


def _curve_of_parts(profile: DeviceProfile, layer: str) -> Curve:
    """Time of parts of a layer relative to all of it, by thousandths and one more.

    As measured of a convolution's filters, and going on below the smallest part as between the
    smallest two; of other layers, and of all parameters, in proportion.
    """
    parts = dict(profile.layer(layer).filters) if layer else {}
    times = {float(part): time for part, time in parts.items()} | {1.0: 1.0}
    measured = sorted(times)
    first, start = measured[0], 0.0
    if len(measured) > 1:
        rise = (times[measured[1]] - times[first]) / (measured[1] - first)
        start = min(max(0.0, times[first] - rise * first), times[first])
    points = [(0.0, start), *((part, times[part]) for part in measured)]
    return Curve(tuple(1 + round(_PARTS * part) for part, _ in points), tuple(t for _, t in points))
