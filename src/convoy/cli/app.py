"""The command line: one file per verb, each of which parses, calls the API and prints."""

from __future__ import annotations

from typing import Annotated

import typer

from convoy.cli import lab
from convoy.cli.compare import compare
from convoy.cli.conv.app import app as conv
from convoy.cli.doctor import doctor
from convoy.cli.evaluate import evaluate
from convoy.cli.layers import layers
from convoy.cli.measure import measure
from convoy.cli.plan import plan
from convoy.cli.simulate import simulate
from convoy.cli.split.app import app as split
from convoy.cli.train import train
from convoy.version import __version__

app = typer.Typer(
    name="convoy",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(train)
app.command()(evaluate)
app.command()(doctor)
app.command()(layers)
app.command()(measure)
app.command()(plan)
app.command()(compare)
app.command()(simulate)
app.add_typer(lab.app)
app.add_typer(split)
app.add_typer(conv)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"convoy {__version__}")
        raise typer.Exit


@app.callback()
def _convoy(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train convolutional networks on the unequal machines you have."""
