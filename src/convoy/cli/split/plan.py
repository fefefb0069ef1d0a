"""`convoy split plan`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from typer import Argument, Option

from convoy.cli.console import console, plain, print_json, stdout_for

SHOWN = 15


def plan(
    run: Annotated[
        Path,
        Argument(help="The folder of a finished run, an ONNX file, or what `split export` made."),
    ],
    edge: Annotated[str, Option(help="A machine of the cluster file; without one, its cores.")],
    cloud: Annotated[str, Option(help="Likewise.")],
    cluster: Annotated[Path | None, Option(help="Cluster file.")] = None,
    bandwidth: Annotated[str | None, Option(help="Of the link, as '10 Mbit/s'.")] = None,
    latency: Annotated[str | None, Option(help="One way, as '5 ms'; 0.1 ms without it.")] = None,
    batch_size: Annotated[int, Option(help="Images in a request.", min=1)] = 1,
    objective: Annotated[
        str, Option("--for", help="latency, throughput, bytes or privacy.")
    ] = "latency",
    accuracy_within: Annotated[
        float, Option(help="Points below the full network's accuracy that will do.", min=0.0)
    ] = 1.0,
    rate: Annotated[
        float, Option(help="Images per second that a way has to keep up with.", min=0.0)
    ] = 0.0,
    deadline: Annotated[
        float | None, Option(help="Seconds that an answer may take; any number without it.")
    ] = None,
    cut: Annotated[str | None, Option(help="The only cuts to look at, as pool1,pool2.")] = None,
    data: Annotated[
        str | None, Option(help="Another data set to judge on; the run's own without it.")
    ] = None,
    data_dir: Annotated[Path | None, Option(help="Where data files lie.")] = None,
    accuracy: Annotated[bool, Option(help="Judge every codec on test images.")] = True,
    images: Annotated[int, Option(help="Test images to judge by.", min=1)] = 1000,
    picture: Annotated[Path | None, Option(help="Draw it, as plan.png.")] = None,
    all_rows: Annotated[bool, Option("--all", help="Every way, not only the best.")] = False,
    json: Annotated[bool, Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Predict what every cut, every picture codec and the edge alone would cost; choose one."""
    from convoy.api.splitting import plan_split  # stands on torch and onnx

    output = console(as_json=json)
    with stdout_for(as_json=json), output.status("reading") as status:
        found = plan_split(
            run,
            edge=edge,
            cloud=cloud,
            cluster=cluster,
            bandwidth=bandwidth,
            latency=latency,
            batch_size=batch_size,
            objective=objective,
            accuracy_within=accuracy_within,
            rate=rate,
            deadline_s=deadline,
            cuts=[name.strip() for name in cut.split(",")] if cut else None,
            dataset=data,
            data_dir=data_dir,
            accuracy=accuracy,
            images=images,
            say=lambda text: status.update(plain(text)),
        ).to_dict()
    if picture is not None:
        from convoy.report.split import draw_split  # matplotlib takes its time

        draw_split(found, picture)
    if json:
        print_json(found)
        return
    good = [row for row in found["rows"] if row["refused"] is None]
    bad = [row for row in found["rows"] if row["refused"] is not None]
    output.print(_table(found, good[: None if all_rows else SHOWN], len(good)))
    if bad:
        output.print(_refused(bad[: None if all_rows else SHOWN], len(bad)))
    output.print(f"[bold]{plain(found['verdict'])}[/]")
    output.print(_accuracies(found))
    if picture is not None:
        output.print(f"{plain(str(picture))} is the picture")


def _accuracies(plan: Mapping[str, Any]) -> str:
    judged = plan["judged_images"]
    if judged:
        return f"accuracies are those of {judged:,} test images"
    if plan["accuracy"] is not None:
        return "accuracies are those that were found when it was exported"
    return "no accuracy was measured: nothing is left out for it"


def _table(plan: Mapping[str, Any], rows: list[dict[str, Any]], count: int) -> Table:
    batch = plan["batch_size"]
    table = Table(
        title=f"{plain(plan['network'])}, {plain(plan['edge']['name'])} and "
        f"{plain(plan['cloud']['name'])} at {plan['link']['bandwidth_bit_s'] / 1e6:g} Mbit/s, "
        f"batch of {batch}, by {plan['objective']}; milliseconds",
        caption=f"{count - len(rows)} more with --all" if count > len(rows) else None,
        header_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("way", no_wrap=True)
    for name in ("edge", "link", "cloud", "latency", "images/s", "bytes", "accuracy"):
        table.add_column(name, justify="right", no_wrap=True, min_width=5)
    for row in rows:
        parts = {
            "edge": row["edge_s"],
            "link": row["transfer_s"],
            "cloud": row["cloud_s"],
            "latency": row["latency_s"],
        }
        cells = {name: f"{seconds * 1e3:,.2f}" for name, seconds in parts.items()}
        cells[row["bottleneck"]] = f"[bold]{cells[row['bottleneck']]}[/]"
        table.add_row(
            plain(row["name"]),
            *cells.values(),
            f"{row['images_per_s']:,.0f}",
            f"{row['sent_bytes'] / batch:,.0f}",
            _percent(row["accuracy"]),
        )
    return table


def _refused(rows: list[dict[str, Any]], count: int) -> Table:
    table = Table(
        title="left out",
        caption=f"{count - len(rows)} more with --all" if count > len(rows) else None,
        header_style="bold",
    )
    table.add_column("way", no_wrap=True)
    table.add_column("accuracy", justify="right")
    table.add_column("why")
    for row in rows:
        table.add_row(plain(row["name"]), _percent(row["accuracy"]), row["refused"])
    return table


def _percent(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{accuracy:.2%}"
