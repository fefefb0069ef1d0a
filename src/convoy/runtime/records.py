"""The record of a run: steps of all ranks, put together and written down.

Ranks report on their own; a step is written once all of its ranks have. Communication is
what even the rank that came last had to wait, and the rest of a rank's wait was for others:

    rank 0   compute ███████████ blocked ▒▒▒▒▒░░░       ▒ wait_s: for slower ranks
    rank 1   compute ████████████████ blocked ░░░       ░ comm_s: for the bytes

A crew that re-forms, or a run that is resumed, may do a step again. `steps.jsonl` is only
ever added to: each line has the generation that did the step, and of a step done more than
once the lines written last are those that count (`read_steps`).
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from convoy.errors import ConvoyError
from convoy.runtime.formation import Formation
from convoy.runtime.json_lines import drop_unfinished, read_lines
from convoy.runtime.sampler import GlobalOrder

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class StepSummary:
    """One step over all ranks."""

    step: int
    generation: int
    samples: int
    wall_s: float
    loss: float
    """Mean over the step's samples, those of lost ranks left out."""
    ranks: tuple[Record, ...]


class Logbook:
    """Puts ranks' records together and appends them to `steps.jsonl`."""

    def __init__(self, path: Path, order: GlobalOrder) -> None:
        self._path = path
        self._order = order
        self._pending: dict[tuple[int, int], dict[int, Record]] = defaultdict(dict)
        self._formations: dict[int, Formation] = {}
        try:
            drop_unfinished(path)
            self._file: TextIO = path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._full(error) from None

    def begin(self, formation: Formation) -> None:
        """A crew has formed; its ranks will report under its generation."""
        self._formations[formation.generation] = formation

    def take(self, records: Iterable[Record]) -> list[StepSummary]:
        """Add ranks' records; return the steps that they complete, which are now on disk."""
        touched = set()
        for record in records:
            key = (record["generation"], record["step"])
            self._pending[key][record["rank"]] = record
            touched.add(key)
        complete = [
            self._write(key)
            for key in sorted(touched)
            if len(self._pending[key]) == len(self._formations[key[0]].plan.shares)
        ]
        self._flush()
        return complete

    def settle(self, generation: int, step: int) -> list[StepSummary]:
        """The crew of `generation` is no more and others go on from `step`.

        Steps before it count: a rank that took its record with it gets a line with its
        samples but no times. Records of later steps are dropped: those will be done again.
        """
        complete = []
        for key in sorted(k for k in self._pending if k[0] == generation):
            if key[1] < step:
                complete.append(self._write(key))
            else:
                del self._pending[key]
        self._flush()
        return complete

    def sync(self) -> None:
        """Have what is written outlive a power cut."""
        self._flush()
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._full(error) from None

    def close(self) -> None:
        """Close the file."""
        try:
            self._file.close()
        except OSError as error:
            raise self._full(error) from None

    def _write(self, key: tuple[int, int]) -> StepSummary:
        generation, step = key
        ranks = self._pending.pop(key)
        formation = self._formations[generation]
        blocked = [r["blocked_s"] for r in ranks.values()]
        comm_s = min(blocked)
        rows: list[Record] = []
        for rank in range(len(formation.plan.shares)):
            part = self._order.slice(step, formation.plan.shares, rank)
            row: Record = {
                "step": step,
                "rank": rank,
                "machine": formation.machines[rank],
                "generation": generation,
                "epoch": part.epoch,
                "first": part.first,
                "samples": len(part.indices),
            }
            got = ranks.get(rank)
            if got is None:
                row |= dict.fromkeys(("compute_s", "wait_s", "comm_s", "wall_s"))
                row |= dict.fromkeys(("sent_bytes", "sent_to", "loss", "time"))
            else:
                row |= {
                    "first": got["first"],
                    "samples": got["samples"],
                    "compute_s": got["compute_s"],
                    "wait_s": got["blocked_s"] - comm_s,
                    "comm_s": comm_s,
                    "wall_s": got["wall_s"],
                    "sent_bytes": got["sent_bytes"],
                    "sent_to": {str(to): size for to, size in got["sent_to"].items()},
                    "loss": got["loss"],
                    "time": got["time"],
                }
            rows.append(row)
        try:
            self._file.writelines(json.dumps(row) + "\n" for row in rows)
        except OSError as error:
            raise self._full(error) from None
        return summarise(rows)

    def _flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            raise self._full(error) from None

    def _full(self, error: OSError) -> ConvoyError:
        return ConvoyError(
            f"cannot write {self._path}: {error.strerror}. Make room, then go on with "
            f"--resume {self._path.parent}"
        )


def summarise(rows: Sequence[Record]) -> StepSummary:
    """One step from its ranks' lines."""
    judged = [row for row in rows if row["loss"] is not None]
    weight = sum(row["samples"] for row in judged)
    return StepSummary(
        step=rows[0]["step"],
        generation=rows[0]["generation"],
        samples=sum(row["samples"] for row in rows),
        wall_s=max((row["wall_s"] for row in rows if row["wall_s"] is not None), default=0.0),
        loss=sum(row["loss"] * row["samples"] for row in judged) / weight if weight else 0.0,
        ranks=tuple(rows),
    )


def _doing(row: Record) -> tuple[int, int]:
    """Of asynchronous training: replicas have numbers, and who comes later has a higher one."""
    return row["generation"], row.get("replica", -1)


def read_steps(path: Path) -> list[StepSummary]:
    """The steps that count, in order: of a step done more than once, the last doing.

    Raises:
        DataError: a line in the middle of the file is damaged. (A last line cut short by a
            crash is left out.)
    """
    by_step: dict[int, list[Record]] = {}
    for row in read_lines(path):
        before = by_step.setdefault(row["step"], [])
        if "replica" not in row:
            if row["rank"] == 0:  # a step's lines are written together, in order of rank
                before.clear()
        elif before:
            last, own = _doing(before[0]), _doing(row)
            if own < last:
                continue
            if own > last:
                before.clear()
        before.append(row)
    return [summarise(by_step[step]) for step in sorted(by_step)]
