"""`convoy plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from typer import Option

from convoy import api
from convoy.cli.console import (
    console,
    plain,
    print_json,
    stdout_for,
    what_is_divided,
    who_does_what,
)
from convoy.cli.entering import enter_lab
from convoy.cli.planning_options import (
    AsJson,
    BatchSize,
    ClusterName,
    DataDir,
    DataName,
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
from convoy.report.plans import PlanReport

SHOWN = 12


@with_strategy_options("Strategies")
def plan(
    network: NetworkName,
    cluster: ClusterName = None,
    workers: Workers = None,
    profile: Annotated[
        Path | None,
        Option(help="Measured figures; without it those in the cache, or they are measured."),
    ] = None,
    batch_size: BatchSize = 64,
    strategies: Strategies = None,
    bandwidth: Annotated[
        str | None, Option(help="Of all links between machines, as if it were '100 Mbit/s'.")
    ] = None,
    data: DataName = None,
    data_dir: DataDir = None,
    optimizer: Name = None,
    precision: Name = None,
    memory_format: Name = None,
    conv_algorithm: Name = None,
    threads_per_worker: Number = None,
    picture: Annotated[
        Path | None, Option(help="Draw one step of the chosen plan, as plan.png.")
    ] = None,
    all_plans: Annotated[bool, Option("--all", help="Every plan, not only the best.")] = False,
    json: AsJson = False,
    verbose: Verbose = False,
    **strategy_options: Any,
) -> None:
    """Predict what each way of training on these machines would cost."""
    options = given(locals(), but=("strategies", "picture", "all_plans"))
    if profile is None:
        enter_lab(cluster)
    output = console(as_json=json)
    with stdout_for(as_json=json), Watcher(output) as watcher:
        report = api.plan(
            strategies=names_in(strategies), observer=watcher, verbose=verbose, **options
        )
    if picture is not None:
        from convoy.report.step_picture import draw_step  # matplotlib takes its time

        draw_step(report, picture)
    if json:
        print_json(report.to_dict())
        return
    output.print(_table(report, len(report.ranking.predictions) if all_plans else SHOWN))
    output.print(report.ranking.advice)
    chosen = report.ranking.predictions[report.ranking.chosen]
    for line in what_is_divided(report.row(chosen)):
        output.print(line)
    for link, size in (chosen.link_bytes or {}).items():
        output.print(f"{plain(link)}: {size / 1e3:,.0f} kB a step")
    if picture is not None:
        output.print(f"one step of it is drawn in {plain(str(picture))}")


def _table(report: PlanReport, shown: int) -> Table:
    ranking = report.ranking
    table = Table(
        title=f"{plain(report.network)}, batch of {ranking.task.batch_size}",
        caption=_left_out(len(ranking.predictions) - shown),
        padding=(0, 0, 0, 1),
    )
    table.add_column("", no_wrap=True)
    table.add_column("strategy", no_wrap=True)
    table.add_column("samples, or work")
    for name in ("step ms", "p90", "bound", "images/s", "gain", "sent kB", "MiB"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, prediction in enumerate(ranking.predictions[:shown]):
        row = report.row(prediction)
        parts = zip(row["machines"], who_does_what(row["machines"]), strict=True)
        machines = ", ".join(f"{plain(m['name'])} {part}" for m, part in parts)
        if staleness := row["settled"].get("expected_staleness"):
            machines += f"; staleness {staleness:g}"
        mark = "[green]>[/]" if number == ranking.chosen else ""
        if row["step_s"] is None or not row["feasible"]:
            table.add_row(mark, row["strategy"], f"{machines}: {plain(row['reason'])}")
            continue
        table.add_row(
            mark,
            row["strategy"],
            machines,
            f"{row['step_s'] * 1e3:.1f}",
            f"{row['step_p90_s'] * 1e3:.1f}",
            f"{row['amdahl_step_s'] * 1e3:.1f}",
            f"{row['images_per_s']:,.0f}",
            f"{row['speedup']:.2f}" if row["speedup"] else "",
            f"{row['sent_bytes_per_step'] / 1e3:,.0f}",
            f"{max(row['peak_bytes']) / 2**20:,.0f}",
        )
    return table


def _left_out(count: int) -> str | None:
    return f"{count} more with --all" if count > 0 else None
