"""`convoy evaluate`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from rich.table import Table
from typer import Argument, Option

from convoy import api
from convoy.cli.console import console, plain, print_json, stdout_for


def evaluate(
    run: Annotated[Path, Argument(help="The run folder of a finished run.")],
    data: Annotated[
        str | None, Option(help="Another data set of the same shape; the run's own without it.")
    ] = None,
    data_dir: Annotated[Path | None, Option(help="Where data files lie.")] = None,
    json: Annotated[bool, Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Accuracy, loss and confusion matrix of a saved run on a test set."""
    with stdout_for(as_json=json):
        found = api.evaluate(run, dataset=data, data_dir=data_dir)
    if json:
        print_json(asdict(found))
        return
    output = console(as_json=False)
    output.print(
        f"[bold]{plain(found.network)}[/] of {plain(found.run)} on [bold]{plain(found.dataset)}[/]"
    )
    output.print(
        f"accuracy [bold]{found.accuracy:.2%}[/] of {found.samples:,} test samples, "
        f"loss {found.loss:.4f}"
    )
    table = Table(title="confusion: true class by predicted class", header_style="bold")
    table.add_column("true")
    for name in found.class_names:
        table.add_column(plain(name), justify="right")
    table.add_column("right", justify="right")
    for name, row, position in zip(
        found.class_names, found.confusion, range(len(found.confusion)), strict=True
    ):
        share = row[position] / sum(row) if sum(row) else 0.0
        cells = [
            f"[bold]{count}[/]" if column == position else (str(count) if count else "·")
            for column, count in enumerate(row)
        ]
        table.add_row(plain(name), *cells, f"{share:.1%}")
    output.print(table)
