"""All verbs of `convoy split`."""

from __future__ import annotations

from convoy.cli.split.bench import bench
from convoy.cli.split.export import export
from convoy.cli.split.light import app
from convoy.cli.split.narrow import narrow
from convoy.cli.split.plan import plan
from convoy.cli.split.privacy import privacy

app.command()(narrow)
app.command()(export)
app.command()(plan)
app.command()(privacy)
app.command()(bench)

__all__ = ["app"]
