"""What the benchmarks share: where results go, and how they are written."""

from __future__ import annotations

import datetime
import itertools
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

import convoy

RESULTS = Path(__file__).parent / "results"


def write(name: str, rows: Sequence[dict[str, Any]], *, about: str) -> None:
    """Write `rows` to results/NAME.json and as a table to results/NAME.md; print the table."""
    RESULTS.mkdir(exist_ok=True)
    facts = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *_arguments()]),
        "processor": processor(),
        "cores": psutil.cpu_count(),
        "versions": {
            "convoy": convoy.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }
    document = {"about": about, **facts, "rows": list(rows)}
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [f"# {name}", "", about, ""]
    lines += [
        f"`{facts['command']}`, {facts['date']}, {facts['processor']}, {facts['cores']} cores"
    ]
    lines += ["", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(shown(row.get(c, "")) for c in columns) + " |" for row in rows]
    text = "\n".join(lines) + "\n"
    (RESULTS / f"{name}.md").write_text(text)
    print(text)


def _arguments() -> list[str]:
    """The command line, with folders of this machine by their meaning."""
    return ["DATA" if Path(word).is_absolute() else word for word in sys.argv[1:]]


def shown(value: Any) -> str:
    """A cell of a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def processor() -> str:
    """What the system calls this machine's processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def convoy_train(arguments: Sequence[str], *, cwd: Path) -> dict[str, Any]:
    """Run `convoy train` as a user would, in `cwd`; returns its result.json."""
    done = subprocess.run(
        [sys.executable, "-m", "convoy", "train", "--json", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def step_times(run: Path, *, skip: int) -> list[float]:
    """Seconds from the end of each step to the end of the next, on rank 0: all there is."""
    lines = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    ends = [line["time"] for line in lines if line["rank"] == 0]
    return [b - a for a, b in itertools.pairwise(ends)][skip:]


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)
