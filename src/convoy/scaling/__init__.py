"""What more and more equal nodes would do: throughput, efficiency, and where it ends.

settings ─▶ hardware.py: a node and its links ─▶ points.py: strategy by number of nodes ─▶ curves
"""

from convoy.scaling.counts import parse_counts
from convoy.scaling.hardware import Hardware
from convoy.scaling.points import EXPOSED_ABOVE, ScalingCurve, ScalingPoint, Workload, scaling_curve
from convoy.scaling.simulation import ScalingSettings, Simulation, simulate_scaling

__all__ = [
    "EXPOSED_ABOVE",
    "Hardware",
    "ScalingCurve",
    "ScalingPoint",
    "ScalingSettings",
    "Simulation",
    "Workload",
    "parse_counts",
    "scaling_curve",
    "simulate_scaling",
]
