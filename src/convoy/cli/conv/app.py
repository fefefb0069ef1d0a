"""All verbs of `convoy conv`."""

from __future__ import annotations

import typer

from convoy.cli.conv.bench import bench

app = typer.Typer(
    name="conv", help="Convolutions themselves: algorithms and their speed.", no_args_is_help=True
)


@app.callback()
def _conv() -> None:
    """Convolutions themselves: algorithms and their speed."""


app.command()(bench)
