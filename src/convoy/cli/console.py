"""What all verbs print with."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from convoy.runtime.json_lines import finite


def console(*, as_json: bool) -> Console:
    """Where people read: stdout, or stderr when stdout is for one JSON document."""
    return Console(stderr=as_json, highlight=False)


def stdout_for(*, as_json: bool) -> AbstractContextManager[Any]:
    """Within it, what libraries and users' code print goes to stderr if stdout is for JSON."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def print_json(document: Any) -> None:
    """Print exactly one JSON document on stdout."""
    sys.stdout.write(json.dumps(finite(document), indent=2, default=str) + "\n")


def complain(error: Exception) -> None:
    """Say on stderr what went wrong."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        Text("error: ", style="bold red") + Text(str(error))
    )


def who_does_what(machines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each machine's samples; where it is not samples that are divided, its part of the work."""
    total = sum(m["samples"] for m in machines) or 1
    by_sample = all(abs(m["share"] - m["samples"] / total) < 1e-9 for m in machines)
    return [f"{m['samples']}" if by_sample else f"{m['share']:.0%}" for m in machines]


def what_is_divided(plan: Mapping[str, Any]) -> list[str]:
    """In words: what the plan settled, layers by how they are divided, and those not, by why."""
    divided: defaultdict[str, list[str]] = defaultdict(list)
    kept: defaultdict[str, list[str]] = defaultdict(list)
    for name, parts in plan["divided"].items():
        divided["/".join(map(str, parts))].append(name)
    for name, reason in plan["kept"].items():
        kept[reason].append(name)
    settled = ", ".join(f"{n.replace('_', ' ')} {value}" for n, value in plan["settled"].items())
    lines = [settled] if settled else []
    lines += [f"{plain(', '.join(names))} divided as {parts}" for parts, names in divided.items()]
    return lines + [f"{plain(', '.join(names))} not: {why}" for why, names in kept.items()]


def plain(text: str) -> str:
    """`text` with nothing in it taken for markup."""
    return escape(text)
