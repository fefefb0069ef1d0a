"""`convoy split`: a network cut in two, between an edge client and a cloud."""

from __future__ import annotations

import typer

from convoy.cli.split.narrow import narrow

app = typer.Typer(
    name="split",
    no_args_is_help=True,
    help="Cut a trained network in two, between an edge client and a cloud.",
)
app.command()(narrow)


@app.callback()
def _split() -> None:
    """A verb with verbs of its own, however few they are."""
