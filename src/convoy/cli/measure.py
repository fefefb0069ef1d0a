"""`convoy measure`."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

from rich.table import Table
from typer import Option

from convoy import api
from convoy.cli.console import console, plain, print_json, stdout_for
from convoy.cli.entering import enter_lab
from convoy.cli.planning_options import (
    ClusterName,
    DataDir,
    DataName,
    Name,
    NetworkName,
    Number,
    Verbose,
    Workers,
    given,
)
from convoy.cli.watching import Watcher
from convoy.cost.profile import Profile, to_json
from convoy.cost.world import world_of


def measure(
    network: NetworkName,
    cluster: ClusterName = None,
    workers: Workers = None,
    out: Annotated[Path, Option(help="Where the profile is written.")] = Path("profile.json"),
    merge: Annotated[
        bool, Option("--merge", help="Add to the profile that is there, instead of replacing it.")
    ] = False,
    batch_size: Annotated[int, Option(help="Measure up to this many samples per device.")] = 64,
    data: DataName = None,
    data_dir: DataDir = None,
    optimizer: Name = None,
    precision: Name = None,
    memory_format: Name = None,
    conv_algorithm: Name = None,
    threads_per_worker: Number = None,
    json: Annotated[bool, Option("--json", help="Print the profile on stdout.")] = False,
    verbose: Verbose = False,
) -> None:
    """Measure machines and links with a network, for `plan` and `train` to plan with."""
    options = given(locals(), but=())
    enter_lab(cluster)
    output = console(as_json=json)
    with stdout_for(as_json=json), Watcher(output) as watcher:
        profile = api.measure(observer=watcher, verbose=verbose, **options)
    if json:
        print_json(json_module.loads(to_json(profile)))
        return
    output.print(_devices(profile))
    if profile.links:
        output.print(_links(profile))
    output.print(f"written to {plain(str(out))}")


def _devices(profile: Profile) -> Table:
    table = Table(title=f"{plain(profile.network.name)}, {profile.memory_format}")
    for name in ("machine", "device", "cores", "samples"):
        table.add_column(name)
    for name in ("step ms", "images/s", "alone", "varies by"):
        table.add_column(name, justify="right")
    for device in world_of(profile).devices:
        about = device.profile
        largest = about.samples[-1]
        step_s = device.whole(largest)
        table.add_row(
            plain(about.machine),
            about.device,
            f"{about.cores:g}",
            f"{largest}",
            f"{step_s * 1e3:.1f}",
            f"{largest / step_s:,.0f}",
            f"{1 / about.alone:.2f}x",
            f"{(max(about.variation) - min(about.variation)) / 2:.0%}",
        )
    return table


def _links(profile: Profile) -> Table:
    table = Table(title="links")
    table.add_column("between")
    table.add_column("Mbit/s", justify="right")
    table.add_column("latency ms", justify="right")
    for link in profile.links:
        table.add_row(
            plain(" - ".join(link.between)),
            f"{link.bandwidth_bytes_s * 8 / 1e6:,.1f}",
            f"{link.latency_s * 1e3:.2f}",
        )
    return table
