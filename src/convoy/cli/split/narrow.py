"""`convoy split narrow`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from typer import Argument, Option

from convoy import api
from convoy.cli.console import console, plain, print_json, stdout_for
from convoy.cli.watching import size
from convoy.errors import UsageError
from convoy.split import trainings
from convoy.split.narrowing import Narrowed


def narrow(
    run: Annotated[Path, Argument(help="The run folder of a finished run.")],
    cut: Annotated[str, Option(help="The layer after which the network is to be cut.")],
    filters: Annotated[
        str, Option(help="Numbers of filters of the convolution before it: 1,4,8,16.")
    ],
    from_scratch: Annotated[
        bool,
        Option("--from-scratch", help="Begin with first weights; without it, fine-tune."),
    ] = False,
    epochs: Annotated[
        int | None,
        Option(help="Of each; a quarter of the run's without it, all of them from scratch."),
    ] = None,
    lr: Annotated[
        float | None,
        Option(help="Learning rate; a tenth of the run's without it, all of it from scratch."),
    ] = None,
    workers: Annotated[int, Option(help="How many are trained at a time.")] = 1,
    out: Annotated[
        Path | None, Option(help="Folder for everything; RUN/narrow/CUT without it.")
    ] = None,
    data_dir: Annotated[Path | None, Option(help="Where data files lie.")] = None,
    json: Annotated[bool, Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Train a run's network with fewer filters before a cut, and see what accuracy that costs.

    The same command goes on where it was interrupted.
    """
    output, numbers = console(as_json=json), _numbers(filters)
    try:
        with stdout_for(as_json=json), _Bars(output) as bars:
            narrowed = api.narrow(
                run,
                cut=cut,
                filters=numbers,
                from_scratch=from_scratch,
                epochs=epochs,
                lr=lr,
                workers=workers,
                out=out,
                data_dir=data_dir,
                watch=bars.show,
            )
    except KeyboardInterrupt:
        output.print("stopped; the same command goes on with what has been done")
        raise
    if json:
        print_json(narrowed.to_dict())
        return
    output.print(_table(narrowed))
    output.print(f"everything is in {plain(str(narrowed.folder))}", soft_wrap=True)


class _Bars:
    """A progress bar for every training that has begun; a context manager."""

    def __init__(self, output: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[accuracy]}"),
            console=output,
            refresh_per_second=4,  # every core may be at work
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, seen: trainings.Progress) -> None:
        """Move a training's bar."""
        if seen.label not in self._tasks:
            task = self._progress.add_task(plain(seen.label), total=None, accuracy="")
            self._tasks[seen.label] = task
        accuracy = f"test {seen.accuracy:.2%}" if seen.accuracy is not None else ""
        self._progress.update(
            self._tasks[seen.label], completed=seen.step, total=seen.steps, accuracy=accuracy
        )


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--filters {text}: expected whole numbers separated by commas, as in 1,4,8"
        ) from None


def _table(narrowed: Narrowed) -> Table:
    full = narrowed.full
    table = Table(
        title=f"{plain(full['network'])} cut at {plain(narrowed.cut)}", header_style="bold"
    )
    columns = ("filters", "accuracy", "against all", "loss", "epochs", "parameters", "per image")
    for name in columns:
        table.add_column(name, justify="right")
    for row in [*narrowed.filters, full]:
        difference = (row["accuracy"] - full["accuracy"]) * 100
        table.add_row(
            str(row["filters"]) if row is not full else f"all {row['filters']}",
            f"{row['accuracy']:.2%}",
            f"{difference:+.2f}" if row is not full else "",
            f"{row['loss']:.4f}",
            f"{row['epochs']:g}",
            f"{row['parameters']:,}",
            size(row["bytes_per_image_float32"]),
            end_section=row is narrowed.filters[-1],
        )
    return table
