"""What the picture of a step shows, by its bars and labels."""

from __future__ import annotations

from typing import Any

import matplotlib.figure

from convoy.cost.schedule import Collective, Compute, Transfer
from convoy.cost.simulate import Span
from convoy.report.step_picture import _draw_spans, _links


def test_a_row_for_each_device_and_each_link() -> None:
    """Three ranks of which the first two share a machine: what stays inside has no row."""
    schedule = (
        Compute(rank=0, phase="forward", samples=1),
        Compute(rank=2, phase="backward", samples=1),
        Collective(kind="all-reduce", ranks=(0, 1, 2), payload_bytes=8),
        Transfer(source=2, destination=0, payload_bytes=8),
        Transfer(source=0, destination=2, payload_bytes=0),
    )
    links = _links(schedule, (0, 0, 1))
    assert links == [(1, 2), (2, 0)]
    spans = [Span(start=float(i), end=i + 0.5) for i in range(5)]
    axes: Any = matplotlib.figure.Figure().subplots()
    assert _draw_spans(axes, schedule, spans, 3, links) == {"forward", "backward", "exchange"}
    bars = {
        (round(box.y0 + box.height / 2), round(box.x0), round(box.width))
        for bar in axes.collections
        for box in (path.get_extents() for path in bar.get_paths())
    }
    assert bars == {(0, 0, 500), (2, 1000, 500), (3, 2000, 500), (4, 2000, 500), (4, 3000, 500)}
