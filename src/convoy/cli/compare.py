"""`convoy compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from typer import Option

from convoy import api
from convoy.cli.console import console, plain, print_json, stdout_for
from convoy.cli.entering import enter_lab
from convoy.cli.planning_options import (
    AsJson,
    BatchSize,
    ClusterName,
    DataDir,
    Name,
    NetworkName,
    Number,
    Strategies,
    Verbose,
    Workers,
    given,
)
from convoy.cli.strategy_options import with_strategy_options
from convoy.cli.values import names_in
from convoy.cli.watching import Watcher
from convoy.runtime.comparing import Comparison


@with_strategy_options("Strategies")
def compare(
    network: NetworkName,
    data: Annotated[str, Option(help="A data set, as for train.")] = "digits",
    strategies: Strategies = None,
    cluster: ClusterName = None,
    workers: Workers = None,
    profile: Annotated[
        Path | None, Option(help="Figures to predict with; else cached ones, or measured.")
    ] = None,
    repeats: Annotated[int, Option(help="How many times each is run, in turns.")] = 3,
    steps: Annotated[
        int | None,
        Option(help="Of each run; without this and --epochs, as many as take some seconds."),
    ] = None,
    epochs: Annotated[int | None, Option(help="In place of steps.")] = None,
    target_accuracy: Annotated[
        float | None, Option(help="On the test set, as 0.97: note the time to it.")
    ] = None,
    equal: Annotated[
        bool, Option("--equal", help="Also planned as if all machines were alike.")
    ] = False,
    each_single: Annotated[
        bool, Option("--each-single", help="Every machine alone, not only the fastest.")
    ] = False,
    batch_size: BatchSize = 64,
    data_dir: DataDir = None,
    lr: Annotated[float | None, Option(help="Learning rate.")] = None,
    optimizer: Name = None,
    precision: Name = None,
    memory_format: Name = None,
    conv_algorithm: Name = None,
    threads_per_worker: Number = None,
    seed: Number = None,
    out: Annotated[
        Path | None, Option(help="Folder for everything; runs/compare-TIME without it.")
    ] = None,
    json: AsJson = False,
    verbose: Verbose = False,
    **strategy_options: Any,
) -> None:
    """Run strategies side by side, and hold what was predicted against what happened."""
    options = given(locals(), but=("strategies",))
    enter_lab(cluster)
    output = console(as_json=json)
    with stdout_for(as_json=json), Watcher(output) as watcher:
        comparison = api.compare(
            strategies=names_in(strategies), observer=watcher, verbose=verbose, **options
        )
    if json:
        print_json(comparison.to_dict())
        return
    output.print(_table(comparison))
    pairs, right = comparison.order["pairs"], comparison.order["right"]
    output.print(f"{right} of {pairs} pairs that differ by over a tenth were foreseen in order")
    if comparison.chosen is not None:
        output.print(f"of these, auto would take {plain(comparison.chosen)}")
    output.print(f"everything is in {plain(str(comparison.folder))}", soft_wrap=True)


def _table(comparison: Comparison) -> Table:
    table = Table(
        title=f"{plain(comparison.network)}, batch of {comparison.batch_size}, "
        f"{comparison.repeats} times in turns",
        padding=(0, 0, 0, 1),
    )
    table.add_column("", no_wrap=True)
    for name in (
        "predicted ms",
        "measured ms",
        "error",
        "place",
        "images/s",
        "sent kB",
        "accuracy",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    if comparison.target_accuracy is not None:
        table.add_column(f"s to {comparison.target_accuracy:.1%}", justify="right")
    for run in comparison.runs:
        accuracy = run["test_accuracy"]
        cells = [
            plain(run["label"]),
            f"{run['predicted_step_s'] * 1e3:.1f}",
            f"{run['measured_step_s'] * 1e3:.1f}",
            f"{run['error']:+.1%}",
            f"{run['predicted_place']} > {run['measured_place']}",
            f"{run['images_per_s']:,.0f}",
            f"{run['sent_bytes_per_step'] / 1e3:,.0f}",
            f"{accuracy:.2%}" if accuracy is not None else "",
        ]
        if comparison.target_accuracy is not None:
            reached = run["time_to_target_s"]
            cells.append(f"{reached:.1f}" if reached is not None else "never")
        table.add_row(*cells)
    return table
