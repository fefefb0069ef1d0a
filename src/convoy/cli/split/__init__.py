"""`convoy split`: a network between an edge client and a cloud. One file per sub-verb.

`light.py` has the verbs that do without torch and Ray, `app.py` all of them.
"""

from __future__ import annotations

import typer

from convoy.cli.split.run import run
from convoy.cli.split.serve import serve

app = typer.Typer(
    name="split",
    no_args_is_help=True,
    help="Cut a network between an edge client and a cloud, where it pays.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run)
app.command()(serve)


@app.callback()
def _split() -> None:
    """Cut a network between an edge client and a cloud, where it pays."""
