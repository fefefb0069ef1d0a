"""The verbs of machines that serve: they import neither torch nor Ray."""

from __future__ import annotations

import typer

from convoy.cli.split.run import run

app = typer.Typer(
    name="split",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run)


@app.callback()
def _split() -> None:
    """Cut a network between an edge client and a cloud, where it pays."""
