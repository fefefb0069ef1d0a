"""Options that `measure`, `plan` and `compare` share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from typer import Option

NetworkName = Annotated[str, Option(help="A network's name, or package.module:function.")]
ClusterName = Annotated[
    str | None, Option(help="Cluster file, ray, or ray://HOST; without it this machine.")
]
Workers = Annotated[int | None, Option(help="Ranks on this machine.")]
DataName = Annotated[
    str | None, Option(help="A data set, as for train; made-up images without it.")
]
DataDir = Annotated[Path | None, Option(help="Where data files lie.")]
BatchSize = Annotated[int, Option(help="Samples per step over all ranks.")]
Strategies = Annotated[str | None, Option(help="As single,data; all without it.")]
Number = Annotated[int | None, Option(help="As for train.")]
Name = Annotated[str | None, Option(help="As for train.")]
AsJson = Annotated[bool, Option("--json", help="Print one JSON document on stdout.")]
Verbose = Annotated[bool, Option("--verbose", "-v", help="Ray's own messages too.")]


def given(values: Mapping[str, Any], *, but: tuple[str, ...]) -> dict[str, Any]:
    """What the user gave of a command's `values`, strategies' own options among them.

    Args:
        values: the command's arguments, as `locals()` has them.
        but: those that the command sees to itself.
    """
    flat = dict(values) | values.get("strategy_options", {})
    apart = {*but, "json", "verbose", "strategy_options"}
    return {name: value for name, value in flat.items() if value is not None and name not in apart}
