"""`convoy simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from typer import Option

from convoy import api
from convoy.cli.console import console, plain, print_json, stdout_for
from convoy.cli.strategy_options import with_strategy_options
from convoy.cli.values import image_shape
from convoy.runtime.memory import collector_paused
from convoy.scaling import (
    EXPOSED_ABOVE,
    Hardware,
    ScalingPoint,
    ScalingSettings,
    Simulation,
    parse_counts,
)

WORK = "What is trained"
NODES = "What a node is, and what joins nodes"


@with_strategy_options("Options of one strategy")
def simulate(
    nodes: Annotated[str, Option(help="Numbers of nodes: 1,2,4,...,1024.")],
    network: Annotated[
        str | None,
        Option(
            help="Network's name, or package.module:function; the profile's without it.",
            rich_help_panel=WORK,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        Option(help="Samples of a step over all nodes (strong scaling).", rich_help_panel=WORK),
    ] = None,
    batch_per_node: Annotated[
        int | None, Option(help="Samples of each node (weak scaling).", rich_help_panel=WORK)
    ] = None,
    image_size: Annotated[
        str | None,
        Option(
            help="Image shape; else the profile's, or the published one.",
            metavar="CxHxW",
            rich_help_panel=WORK,
        ),
    ] = None,
    classes: Annotated[
        int | None, Option(help="Number of classes, likewise.", rich_help_panel=WORK)
    ] = None,
    strategy: Annotated[
        str, Option(help="One strategy, or several with commas between.", rich_help_panel=WORK)
    ] = "data",
    profile: Annotated[
        Path | None, Option(help="Measured figures of a network.", rich_help_panel=NODES)
    ] = None,
    cluster: Annotated[
        Path | None,
        Option(help="A cluster file: links, machines and their figures.", rich_help_panel=NODES),
    ] = None,
    like: Annotated[
        str | None,
        Option(
            help="The machine of the profile or cluster file that every node is like.",
            rich_help_panel=NODES,
        ),
    ] = None,
    flops: Annotated[
        str | None,
        Option(
            help='What a node achieves, as "9.5 TFLOP/s"; in place of a profile.',
            rich_help_panel=NODES,
        ),
    ] = None,
    bandwidth: Annotated[
        str | None, Option(help='Of a host, each way: "10 Gbit/s".', rich_help_panel=NODES)
    ] = None,
    latency: Annotated[
        str | None, Option(help='One way between hosts: "50 us".', rich_help_panel=NODES)
    ] = None,
    within: Annotated[
        str | None,
        Option(help='Bandwidth between nodes of a host: "80 GB/s".', rich_help_panel=NODES),
    ] = None,
    per_host: Annotated[
        int | None,
        Option(help="Nodes that share a host; a machine's gpus without it.", rich_help_panel=NODES),
    ] = None,
    all_reduce: Annotated[
        str, Option(help="ring, halving-doubling or hierarchical.", rich_help_panel=NODES)
    ] = "ring",
    baseline: Annotated[int, Option(help="The number of nodes whose efficiency counts as 1.")] = 1,
    out: Annotated[
        Path | None, Option(help="A folder for scaling.png and scaling.json.", metavar="FOLDER")
    ] = None,
    json: Annotated[bool, Option("--json", help="Print one JSON document on stdout.")] = False,
    **strategy_options: Any,
) -> None:
    """Predict throughput and efficiency on more and more equal nodes, hundreds if need be."""
    settings = ScalingSettings(
        nodes=parse_counts(nodes),
        hardware=Hardware(
            profile=profile,
            cluster=cluster,
            like=like,
            flops=flops,
            bandwidth=bandwidth,
            latency=latency,
            within=within,
            per_host=per_host,
            all_reduce=all_reduce,
        ),
        batch_size=batch_size,
        batch_per_node=batch_per_node,
        image_size=image_shape("--image-size", image_size),
        classes=classes,
        strategies=[name.strip() for name in strategy.split(",") if name.strip()],
        strategy_options={k: v for k, v in strategy_options.items() if v is not None},
        baseline=baseline,
    )
    # Hundreds of thousands of operations would be looked through, and none of them is in a circle.
    with stdout_for(as_json=json), collector_paused():
        found = api.simulate(network, settings, out=out)
    if json:
        print_json(found.to_dict())
        return
    output = console(as_json=False)
    output.print(_table(found))
    for curve in found.curves:
        for left in curve.skipped:
            output.print(f"Skipped {left.strategy} on {left.nodes:,} nodes: {plain(left.reason)}")
    for note in found.notes:
        output.print(plain(note))
    for curve in found.curves:
        output.print(f"[bold]{plain(curve.verdict)}[/]")
    if out is not None:
        output.print(f"{plain(str(out / 'scaling.png'))} is the picture.")


def _table(found: Simulation) -> Table:
    size = "x".join(map(str, found.image_size))
    table = Table(title=f"{plain(found.network)}, images of {size}", header_style="bold")
    table.add_column("strategy")
    for name in ("nodes", "batch", "images/s", "efficiency", "step ms", "exposed"):
        table.add_column(name, justify="right")
    for curve in found.curves:
        for point in curve.points:
            table.add_row(*_cells(point))
    return table


def _cells(point: ScalingPoint) -> list[str]:
    exposed = f"{point.exposed:.1%}"
    return [
        point.strategy,
        f"{point.nodes:,}",
        f"{point.batch_size:,}",
        f"{point.images_per_s:,.{0 if point.images_per_s >= 100 else 2}f}",
        "" if point.efficiency is None else f"{point.efficiency:.1%}",
        f"{point.step_s * 1e3:,.1f}",
        f"[bold red]{exposed}[/]" if point.exposed > EXPOSED_ABOVE else exposed,
    ]
