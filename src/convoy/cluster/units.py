"""Figures as people write them: "100 Mbit/s", "12.5 MB/s", "0.1 ms"; and back, exactly.

Bandwidth is a number, then k, M, G or T (powers of 1000; Ki, Mi, Gi, Ti of 1024) in either
case, then `bit`, `b`, `byte` or `B`, then `/s`, `ps` or nothing. Only in the single letters
does case count: `b` is bits and `B` is bytes, so "10 Mbps" is ten megabits (tc alone reads
it as bytes). Durations end in ns, us, ms or s. Speeds of computing are "9.5 TFLOP/s", also
"9.5 TFLOPS", with k, M, G, T or P.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal

from convoy.errors import ClusterError

NUMBER = r"\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)\s*"
BANDWIDTH = re.compile(
    NUMBER + r"(?:(?P<prefix>[kKmMgGtT])(?P<binary>i)?)?"
    r"(?:(?P<bits>(?i:bits?)|b)|(?P<bytes>(?i:bytes?)|B))(?:/s|ps)?\s*",
    re.ASCII,
)
DURATION = re.compile(NUMBER + r"(?P<unit>ns|us|µs|μs|ms|s)\s*")

FLOPS = re.compile(NUMBER + r"(?P<prefix>[kKmMgGtTpP])?(?i:flops?)(?:/s|ps)?\s*", re.ASCII)

PREFIXES = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
SECONDS = {"s": "1", "ms": "1e-3", "us": "1e-6", "µs": "1e-6", "μs": "1e-6", "ns": "1e-9"}


def parse_bandwidth(text: str) -> float:
    """Bits per second of `text`; ClusterError unless it is a finite bandwidth above 0."""
    expected = 'expected a number above 0 with a unit, such as "1 Gbit/s" or "12.5 MB/s"'
    match = BANDWIDTH.fullmatch(text)
    if match is None:
        raise ClusterError(f"found {text!r}, {expected}")
    base = Decimal(1024 if match["binary"] else 1000)
    scale = base ** PREFIXES[(match["prefix"] or "").lower()] * (8 if match["bytes"] else 1)
    value = float(Decimal(match["number"]) * scale)
    if not (math.isfinite(value) and value > 0):
        raise ClusterError(f"found {text!r}, {expected}")
    return value


def parse_duration(text: str) -> float:
    """Seconds of `text`; ClusterError unless it is finite and 0 or more."""
    expected = 'expected a number, 0 or more, with a unit, such as "0.1 ms" or "50us"'
    match = DURATION.fullmatch(text)
    if match is None:
        raise ClusterError(f"found {text!r}, {expected}")
    value = float(Decimal(match["number"]) * Decimal(SECONDS[match["unit"]]))
    if not (math.isfinite(value) and value >= 0):
        raise ClusterError(f"found {text!r}, {expected}")
    return value


def parse_flops(text: str) -> float:
    """Floating-point operations a second of `text`; ClusterError unless finite and above 0."""
    expected = 'expected a number above 0 with a unit, such as "9.5 TFLOP/s" or "300 GFLOP/s"'
    match = FLOPS.fullmatch(text)
    if match is None:
        raise ClusterError(f"found {text!r}, {expected}")
    power = PREFIXES[(match["prefix"] or "").lower()]
    value = float(Decimal(match["number"]) * Decimal(1000) ** power)
    if not (math.isfinite(value) and value > 0):
        raise ClusterError(f"found {text!r}, {expected}")
    return value


def format_bandwidth(bandwidth_bit_s: float) -> str:
    """The shortest form that `parse_bandwidth` turns back into the very same float."""
    steps = {"Gbit/s": 1e9, "Mbit/s": 1e6, "kbit/s": 1e3, "bit/s": 1.0}
    return format_exactly(bandwidth_bit_s, steps, parse_bandwidth)


def format_duration(duration_s: float) -> str:
    """The shortest form that `parse_duration` turns back into the very same float."""
    return format_exactly(duration_s, {"s": 1.0, "ms": 1e-3, "us": 1e-6}, parse_duration)


def format_flops(flops: float) -> str:
    """The shortest form that `parse_flops` turns back into the very same float."""
    steps = {"TFLOP/s": 1e12, "GFLOP/s": 1e9, "MFLOP/s": 1e6, "FLOP/s": 1.0}
    return format_exactly(flops, steps, parse_flops)


def format_exactly(value: float, steps: Mapping[str, float], parse: Callable[[str], float]) -> str:
    """`value` in the first unit that suits and loses nothing; `steps` go from large to small."""
    for unit, step in steps.items():
        text = f"{value / step:.15g} {unit}"
        if 1 <= value / step < 1e4 and parse(text) == value:
            return text
    plain = next(unit for unit, step in steps.items() if step == 1)
    return f"{value!r} {plain}"
