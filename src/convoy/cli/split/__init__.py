"""`convoy split`: a network between an edge client and a cloud. One file per sub-verb.

Each imports what it needs when it is called: an edge machine has neither torch nor Ray.
"""

from __future__ import annotations

import typer

from convoy.cli.split.export import export
from convoy.cli.split.plan import plan

app = typer.Typer(
    name="split",
    no_args_is_help=True,
    help="Cut a network between an edge client and a cloud, where it pays.",
)
app.command()(plan)
app.command()(export)


@app.callback()
def _split() -> None:
    """Cut a network between an edge client and a cloud, where it pays."""
