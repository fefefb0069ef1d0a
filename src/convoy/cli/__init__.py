"""The command `convoy`: one file per verb, each of which parses, calls the API and prints.

Exit status: 0 done, 1 it failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from convoy.cli.console import complain
from convoy.cli.doctor import doctor
from convoy.cli.evaluate import evaluate
from convoy.cli.train import train
from convoy.errors import ConvoyError, UsageError
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


def main() -> None:
    """Run the command line; errors become one readable paragraph and an exit status."""
    try:
        app()
    except UsageError as error:
        complain(error)
        sys.exit(2)
    except ConvoyError as error:
        complain(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
