"""A run on the terminal: what will be done, a progress bar, and a table at the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from convoy.cli.console import plain, what_is_divided, who_does_what
from convoy.runtime.observer import Level
from convoy.runtime.records import StepSummary
from convoy.runtime.results import RunResult

MOST_LAYERS = 4
"""Whose algorithms are named; result.json has all."""


class Watcher:
    """An Observer that shows the run; a context manager for its progress bar."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._recent: deque[StepSummary] = deque(maxlen=20)
        self._accuracy = ""
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=4,  # every core may be at work
        )
        self._task: TaskID | None = None
        self._steps_per_epoch = 1

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        if self._task is not None:
            self._progress.stop()

    def planned(self, plan: Mapping[str, Any]) -> None:
        """Say what will be done."""
        shape = "x".join(str(n) for n in plan["image_shape"])
        self._console.print(
            f"[bold]{plain(plan['network'])}[/] ({plan['parameters']:,} parameters) on "
            f"[bold]{plain(plan['dataset'])}[/]: {plan['train_samples']:,} images of {shape}, "
            f"{plan['classes']} classes; {plan['test_samples']:,} to test with"
        )
        parts = zip(plan["machines"], who_does_what(plan["machines"]), strict=True)
        ranks = ", ".join(f"{plain(m['name'])} {m['device']} {part}" for m, part in parts)
        self._console.print(
            f"[bold]{plan['strategy']}[/] over {len(plan['machines'])} rank"
            f"{'s' * (len(plan['machines']) != 1)}, batch {plan['batch_size']} = {ranks}; "
            f"{plan['steps']:,} steps of {plan['optimizer']}"
        )
        for line in what_is_divided(plan):
            self._console.print(line)
        self._console.print(f"run folder: {plain(plan['folder'])}")
        self._steps_per_epoch = plan["steps_per_epoch"]
        self._task = self._progress.add_task("", total=plan["steps"], epoch="1", figures="")
        self._progress.start()

    def stepped(self, step: StepSummary, num_steps: int) -> None:
        """Move the bar."""
        del num_steps  # the bar knows
        self._recent.append(step)
        seconds = sum(s.wall_s for s in self._recent)
        speed = sum(s.samples for s in self._recent) / seconds if seconds else 0.0
        if self._task is not None:
            self._progress.update(
                self._task,
                completed=step.step + 1,
                epoch=str(step.step // self._steps_per_epoch + 1),
                figures=f"loss {step.loss:.4f}  {speed:,.0f} images/s{self._accuracy}",
            )

    def evaluated(self, step: int, accuracy: float, loss: float) -> None:
        """Show the accuracy beside the bar."""
        del step, loss
        self._accuracy = f"  test {accuracy:.2%}"

    def say(self, text: str, level: Level = "info") -> None:
        """Print a line above the bar."""
        style = "yellow" if level == "warning" else "dim"
        self._console.print(f"[{style}]{plain(text)}[/]", soft_wrap=True)


def _convolutions(by_rank: Mapping[str, Mapping[str, str]]) -> str:
    """Which algorithms ranks used, where torch's own was not."""
    said = []
    for rank, of in by_rank.items():
        named = ", ".join(f"{layer} {of[layer]}" for layer in [*of][:MOST_LAYERS])
        more = f" and {len(of) - MOST_LAYERS} more" if len(of) > MOST_LAYERS else ""
        said.append(f"rank {rank}: {named}{more}")
    return "; ".join(said) or "torch's own on all ranks"


def show_result(console: Console, result: RunResult) -> None:
    """The table at the end, and what a person should know besides."""
    table = Table(title=None, header_style="bold")
    for name in (
        "rank",
        "machine",
        "samples/step",
        "compute ms",
        "wait ms",
        "comm ms",
        "sent/step",
    ):
        table.add_column(name, justify="left" if name in ("machine",) else "right")
    for row in result.ranks:
        table.add_row(
            str(row["rank"]),
            plain(row["machine"]),
            str(row["samples"]),
            *(f"{row[key] * 1e3:.2f}" for key in ("compute_s", "wait_s", "comm_s")),
            size(row["sent_bytes"]),
        )
    console.print(table)
    accuracy = f"{result.test_accuracy:.2%}" if result.test_accuracy is not None else "not measured"
    speed = f"{result.images_per_s:,.0f}" if result.images_per_s else "not measured"
    console.print(
        f"test accuracy [bold]{accuracy}[/]   [bold]{speed}[/] images/s   "
        f"{size(result.sent_bytes_per_step)} sent per step   {result.wall_s:.1f} s in all"
    )
    if result.conv_algorithm != "torch":
        console.print(plain(f"convolutions: {_convolutions(result.convolutions)}"))
    if result.servers is not None:
        _show_servers(console, result.servers, result.reformations)
    elif result.reformations:
        times = "once" if result.reformations == 1 else f"{result.reformations} times"
        console.print(f"ranks were lost and the others formed anew {times}")
    console.print(f"picture: {plain(str(result.folder / 'run.png'))}")


def _show_servers(console: Console, servers: Mapping[str, Any], losses: int) -> None:
    """What parameter servers did, and what was lost."""
    staleness, shards = servers["staleness"], servers["shards"]
    if staleness["mean"] is not None:
        console.print(
            f"{servers['updates']:,} updates on {shards} shard{'s' * (shards != 1)}; a push was "
            f"{staleness['mean']:.1f} versions behind on average, {staleness['max']} at most"
        )
    if losses:
        times = "once" if losses == 1 else f"{losses} times"
        console.print(
            f"replicas were lost {times}; {servers['steps_leased_again']:,} of their steps were "
            "leased again"
        )
    if servers["restorations"]:
        count = len(servers["restorations"])
        console.print(
            f"shards were lost {'once' if count == 1 else f'{count} times'} and restored from "
            f"snapshots; {servers['lost_updates']:,} updates were lost"
        )


def size(num_bytes: float) -> str:
    """Bytes for people: powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000 or unit == "GB":
            return f"{num_bytes:,.0f} {unit}" if unit == "B" else f"{num_bytes:,.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError
