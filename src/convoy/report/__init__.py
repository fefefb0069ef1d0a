"""What people look at, drawn from the files of a run folder only."""

from convoy.report.picture import draw_run

__all__ = ["draw_run"]
