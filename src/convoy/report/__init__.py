"""What people look at, drawn from files and documents of results only."""

from convoy.report.picture import draw_run
from convoy.report.scaling import draw_scaling

__all__ = ["draw_run", "draw_scaling"]
