"""`convoy doctor`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from rich.table import Table
from typer import Option

from convoy import api
from convoy.cli.console import console, plain, print_json
from convoy.doctor import DoctorOptions

STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(
    cluster: Annotated[
        str | None, Option(help="Examine this cluster too: FILE, ray, or ray://HOST.")
    ] = None,
    address: Annotated[
        str | None, Option(help="Where its Ray listens, HOST:PORT, if not found by itself.")
    ] = None,
    out: Annotated[Path, Option(help="Where runs are to be kept.")] = Path("runs"),
    json: Annotated[bool, Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Examine this machine, and a cluster, for what would keep ranks from working or meeting."""
    checks = api.doctor(DoctorOptions(cluster=cluster, address=address, run_folder=out))
    if json:
        print_json({"checks": [asdict(check) for check in checks]})
    else:
        table = Table(box=None, show_header=False, padding=(0, 1))
        for check in checks:
            advice = f"\n[italic]{plain(check.advice)}[/]" if check.advice else ""
            table.add_row(
                f"[{STYLES[check.status]}]{check.status}[/]",
                plain(check.name),
                plain(check.detail) + advice,
            )
        console(as_json=False).print(table)
    if any(check.status == "problem" for check in checks):
        sys.exit(1)
