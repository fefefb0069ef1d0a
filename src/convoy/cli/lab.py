"""`convoy lab`: an emulated cluster, up and down, and what happens to it meanwhile."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer import Argument, Option

from convoy.cli.console import console, plain, print_json
from convoy.cluster import format_bandwidth, load_cluster, parse_bandwidth
from convoy.errors import LabError, UsageError

app = typer.Typer(
    name="lab", no_args_is_help=True, help="Emulate a cluster of unequal machines on this computer."
)
Name = Annotated[str, Option(help="Which lab, where several are up.")]
AsJson = Annotated[bool, Option("--json", help="Print one JSON document on stdout.")]


def _lab(*, changes: bool = True) -> Any:
    """The lab's code, which stands on an optional package.

    Raises:
        LabError: it is not there; or `changes`, and this computer or user cannot do that.
    """
    try:
        from convoy import lab
    except ModuleNotFoundError as error:
        raise LabError(
            f"the lab needs {error.name}: pip install 'convoy-cnn[lab]' (Linux only)"
        ) from None
    if changes:
        lab.check_possible()
    return lab


@app.command()
def up(
    cluster: Annotated[Path, Argument(help="Cluster file.")],
    name: Name = "lab",
    ray: Annotated[bool, Option(help="Start a Ray node on every machine.")] = True,
    json: AsJson = False,
) -> None:
    """Build the cluster of a file: its machines, links and CPU shares, with Ray on each."""
    lab = _lab()
    built = lab.up(load_cluster(cluster), name, ray=ray)
    _show(built, as_json=json)
    if not json:
        console(as_json=False).print(
            f"run something in it: convoy lab exec --name {name} -- convoy train --cluster "
            f"{plain(str(cluster))}"
        )


@app.command()
def status(name: Name = "lab", json: AsJson = False) -> None:
    """What is up: machines, addresses, cores, processes."""
    _show(_lab(changes=False).find(name), as_json=json)


@app.command(
    name="exec", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def execute(
    command: Annotated[list[str], Argument(help="What to run, after --.")],
    machine: Annotated[
        str | None, Option(help="Where; on the file's first machine without it.")
    ] = None,
    name: Name = "lab",
) -> None:
    """Run a command on a machine of the lab; its exit status is this command's."""
    lab = _lab().find(name)
    where = machine or next(iter(lab.addresses))
    sys.stdout.flush()
    status = lab.run(where, command).returncode
    if status:
        raise typer.Exit(status if status > 0 else 128 - status)


@app.command()
def link(
    a: Annotated[str, Argument(help="A machine.")],
    b: Annotated[str, Argument(help="Another one.")],
    bandwidth: Annotated[str | None, Option(help="As '10 Mbit/s'.")] = None,
    cut: Annotated[bool, Option("--cut", help="Let nothing through.")] = False,
    mend: Annotated[bool, Option("--mend", help="Undo --cut.")] = False,
    name: Name = "lab",
) -> None:
    """Change, cut or mend the link between two machines while the lab runs."""
    if (bandwidth is not None) + cut + mend != 1:
        raise UsageError("convoy lab link: give one of --bandwidth, --cut and --mend")
    lab = _lab().find(name)
    if bandwidth is not None:
        lab.set_bandwidth(a, b, parse_bandwidth(bandwidth))
    elif cut:
        lab.cut(a, b)
    else:
        lab.mend(a, b)


@app.command(name="machine")
def change_machine(
    machine: Annotated[str, Argument(help="A machine.")],
    cpus: Annotated[float | None, Option(help="Cores it has from now on.", min=0.01)] = None,
    freeze: Annotated[bool, Option("--freeze", help="Stop its processes where they are.")] = False,
    thaw: Annotated[bool, Option("--thaw", help="Let them go on.")] = False,
    kill: Annotated[bool, Option("--kill", help="Kill them all, Ray's too.")] = False,
    name: Name = "lab",
) -> None:
    """Slow, freeze, thaw or kill a machine while the lab runs."""
    if (cpus is not None) + freeze + thaw + kill != 1:
        raise UsageError("convoy lab machine: give one of --cpus, --freeze, --thaw and --kill")
    lab = _lab().find(name)
    if cpus is not None:
        lab.set_cores(machine, cpus)
    elif freeze:
        lab.freeze(machine)
    elif thaw:
        lab.thaw(machine)
    else:
        lab.kill(machine)


@app.command()
def down(name: Name = "lab") -> None:
    """Unmake a lab: its processes, namespaces, groups and files, and nothing else."""
    _lab().down(name)


def _show(lab: Any, *, as_json: bool) -> None:
    machines = [
        {
            "name": machine.name,
            "address": lab.addresses[machine.name],
            "cpus": lab.cores(machine.name),
            "processes": len(lab.processes(machine.name)),
        }
        for machine in lab.cluster.real_machines
    ]
    network = lab.cluster.network
    if as_json:
        about = {"name": lab.name, "ready": lab.is_ready, "machines": machines}
        changed = dict(lab.changed_links)
        print_json({**about, "bandwidth": network.bandwidth_bit_s, "changed_links": changed})
        return
    table = Table(
        title=f"lab {plain(lab.name)}, {format_bandwidth(network.bandwidth_bit_s)}",
        header_style="bold",
    )
    for column in ("machine", "address", "cores", "processes"):
        table.add_column(column)
    for row in machines:
        table.add_row(
            plain(str(row["name"])), str(row["address"]), f"{row['cpus']:g}", str(row["processes"])
        )
    output = console(as_json=False)
    output.print(table)
    for pair, what in lab.changed_links.items():
        output.print(f"link {plain(pair)}: {what}")
    if not lab.is_ready:
        output.print(f"not built to the end: convoy lab down --name {lab.name}")
