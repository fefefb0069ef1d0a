"""The record of asynchronous training: replicas' steps as they come, and what follows from them.

Every line of `steps.jsonl` is one replica's step. Its time is by this machine's clock: replicas'
clocks may be wrong, and are asked what they say, so that their times can be told in ours.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from convoy.errors import ConvoyError
from convoy.runtime.events import Event
from convoy.runtime.json_lines import drop_unfinished, read_lines
from convoy.runtime.observer import Observer
from convoy.runtime.records import StepSummary, read_steps, summarise
from convoy.runtime.run_folder import RunFolder
from convoy.runtime.sampler import GlobalOrder
from convoy.runtime.servers.patient_file import PatientFile
from convoy.runtime.tensorboard import Board
from convoy.runtime.timeline import Timeline

WRONG_CLOCK_S = 5.0
"""By how much a replica's clock may differ before it is said so."""
ASK_CLOCK_S = 30.0
WINDOW = 20
"""Steps over which the pace is taken, and the loss."""
RISEN, RISEN_OVER_CHANCE = 2.0, 1.1
"""A loss so much higher than the best, and than that of guessing, is none to go on from."""


@dataclass
class Tally:
    """What all steps come to."""

    steps: int = 0
    samples: int = 0
    repeated: int = 0
    """Samples that were used once more, since what became of them was lost or not known."""
    staleness: Counter[int] = field(default_factory=Counter)
    """Pushes by how many versions they were behind."""
    by_rank: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    """Samples since the run began or was resumed, those of a replica of several devices by their
    parts of the work."""


class FleetLog:
    """Takes replicas' reports, and keeps the run folder and the observer up to date."""

    def __init__(
        self,
        folder: RunFolder,
        order: GlobalOrder,
        test_samples: int,
        num_steps: int,
        observer: Observer,
        timeline: Timeline,
        *,
        parts: Sequence[float] = (1.0,),
        chance: float = math.inf,
    ) -> None:
        """Begin, or go on with what is in the folder.

        Args:
            chance: the loss of somebody who guesses.
            parts: of a replica's work, each of its devices'.
        """
        self.folder = folder
        self.board = Board(folder.tensorboard)
        self.tally = Tally()
        self.rows: list[dict[str, Any]] = []
        """Steps' records, for what is said of the run in the end."""
        self.versions: dict[int, tuple[int, int]] = {}
        """By shard: the newest incarnation and version that a replica has been told of."""
        self.layout: str | None = None
        self.convolutions: dict[int, dict[str, str]] = {}
        self.evaluation: tuple[int, float, float] | None = None
        self.test_samples = test_samples
        self._order, self.num_steps = order, num_steps
        self._observer, self._timeline = observer, timeline
        self._parts = parts
        self._seen: set[int] = set()
        self._had_s = self._go_on()
        self._steps = PatientFile(folder.steps)
        self._evaluations = PatientFile(folder.evaluations)
        self._is_full = self._has_no_curves = False
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._best, self._chance = math.inf, chance
        self._ends: deque[float] = deque(maxlen=WINDOW + 1)
        self._skew: dict[int, float] = {}
        self._asked: dict[int, float] = {}
        self._warned: set[str] = set()
        self._began = time.monotonic()

    def _go_on(self) -> float:
        """Count what is in the folder; how many seconds its replicas have trained so far."""
        if self.folder.steps.is_file():
            drop_unfinished(self.folder.steps)
            rows = read_lines(self.folder.steps)
            if all("replica" in row for row in rows):
                for row in rows:
                    if not row["position"]:
                        self._count(row)
            else:  # another strategy began
                for step in read_steps(self.folder.steps):
                    self._count_samples(step.step, step.samples)
        if not self.folder.evaluations.is_file():
            return 0.0
        drop_unfinished(self.folder.evaluations)
        rows = read_lines(self.folder.evaluations)
        return max((row["elapsed_s"] for row in rows if "elapsed_s" in row), default=0.0)

    def _count(self, row: Mapping[str, Any]) -> None:
        self._count_samples(row["step"], row["samples"])
        if row["staleness"] is not None:
            self.tally.staleness[row["staleness"]] += 1

    def _count_samples(self, step: int, samples: int) -> None:
        self.tally.steps += 1
        self.tally.samples += samples
        if step in self._seen:
            self.tally.repeated += samples
        self._seen.add(step)

    def begin(self) -> None:
        """Replicas are about to start."""
        self._began = time.monotonic()

    def wants_clock(self, rank: int) -> bool:
        """Whether it is time to ask a rank's machine for the time."""
        return time.monotonic() - self._asked.get(rank, -ASK_CLOCK_S) >= ASK_CLOCK_S

    def clock(self, rank: int, machine: str, asked: float, said: float, answered: float) -> None:
        """A machine's clock was asked at `asked`, said `said`, and answered by `answered`, ours."""
        skew = said - (asked + answered) / 2
        self._skew[rank] = skew
        self._asked[rank] = time.monotonic()
        if abs(skew) > WRONG_CLOCK_S and machine not in self._warned:
            self._warned.add(machine)
            way = "ahead of" if skew > 0 else "behind"
            self._observer.say(
                f"the clock of {machine} is {abs(skew):.0f} s {way} this machine's: its records "
                "are written in this machine's time. Nothing depends on it",
                "warning",
            )

    def take(self, events: Sequence[Event]) -> None:
        """Take what replicas reported; what there is no room for on the disk waits in memory."""
        steps: list[StepSummary] = []
        for kind, content in events:
            if kind == "record":
                row = self._record(dict(content))
                if not row["position"]:  # of the others of its replica the step is the same
                    steps.append(self._summed_up(row))
            elif kind == "layout":
                self.layout = self.layout or content["layout"]
            elif kind == "convolutions":
                self.convolutions[content["rank"]] = content["algorithms"]
            elif kind == "evaluation":
                self.evaluated(content["step"], content)
        if steps:
            self._draw(lambda: self.board.steps(steps))
            self._draw(lambda: self.board.staleness(self.tally.staleness, self.tally.steps))
        if events:
            self.flush()

    def evaluated(self, step: int, sums: Mapping[str, Any]) -> None:
        """The network was judged, as it was when `step` had been done."""
        accuracy = sums["correct"] / sums["samples"]
        loss = sums["loss_sum"] / sums["samples"]
        self.evaluation = (step, accuracy, loss)
        row = {"step": step, "test_accuracy": accuracy, "test_loss": loss}
        row["elapsed_s"] = self._had_s + time.monotonic() - self._began
        self._evaluations.add(row)
        self.flush()
        self._draw(lambda: self.board.evaluation(step, accuracy, loss))
        self._observer.evaluated(step, accuracy, loss)

    def close(self) -> None:
        """Flush and close all files.

        Raises:
            ConvoyError: there still is no room for what is to be written.
        """
        self._draw(self.board.close)
        errors = [error for file in self._files if (error := file.close())]
        if errors:
            raise ConvoyError(
                f"cannot write in {self.folder.path}: {errors[0].strerror}. Make room, then go on "
                f"with --resume {self.folder.path}"
            )

    def flush(self) -> bool:
        """Have what is written seen by others; whether all of it is."""
        errors = [error for file in self._files if (error := file.flush())]
        if errors and not self._is_full:
            self._observer.say(
                f"cannot write in {self.folder.path}: {errors[0].strerror}. Training goes on, and "
                "records wait in memory until there is room",
                "warning",
            )
        self._is_full = bool(errors)
        return not errors

    @property
    def steps_now(self) -> int:
        """Those done since the run began, or was resumed."""
        return sum(not row["position"] for row in self.rows)

    @property
    def risen(self) -> tuple[float, float] | None:
        """The best loss and that of the last steps, if all that was learnt since seems lost."""
        loss = statistics.fmean(self._losses) if len(self._losses) == WINDOW else 0.0
        is_lost = loss > max(RISEN * self._best, RISEN_OVER_CHANCE * self._chance)
        return (self._best, loss) if is_lost else None

    @property
    def _files(self) -> tuple[PatientFile, PatientFile]:
        return self._steps, self._evaluations

    def _draw(self, work: Callable[[], None]) -> None:
        """TensorBoard's files are not patient: where they cannot be written, they end."""
        if self._has_no_curves:
            return
        try:
            work()
        except ConvoyError as error:
            self._observer.say(f"{error}. TensorBoard's curves end here", "warning")
            self._has_no_curves = True

    def _record(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write a line; what is in it besides what the replica reported follows from it."""
        for shard, version in row.pop("versions").items():
            self.versions[shard] = max(self.versions.get(shard, (0, 0)), tuple(version))
        part = self._parts[row["position"]]
        self.tally.by_rank[row["rank"]] += row.pop("step_samples") * part
        row["epoch"] = self._order.epoch_of(row["step"])
        row["time"] = row["time"] - self._skew.get(row["rank"], 0.0)
        row["wait_s"] = min(row["blocked_s"], row.pop("held_s") or 0.0)
        row["comm_s"] = row.pop("blocked_s") - row["wait_s"]
        for key in ("sent_to", "received_from"):
            row[key] = {str(rank): size for rank, size in row[key].items()}
        self.rows.append(row)
        self._steps.add(row)
        return row

    def _summed_up(self, row: dict[str, Any]) -> StepSummary:
        """A step in the tally, and as it is shown."""
        self._count(row)
        if row["loss"] is not None:
            self._losses.append(row["loss"])
            if len(self._losses) == WINDOW:
                self._best = min(self._best, statistics.fmean(self._losses))
        self._timeline.mark("first step")
        self._ends.append(row["time"])
        summary = summarise([row])
        # Whoever shows it takes wall_s for how long a step keeps everyone: here that is the pace.
        pace = max(1e-9, max(self._ends) - min(self._ends)) / max(1, len(self._ends) - 1)
        shown = StepSummary(
            **(vars(summary) | {"step": len(self._seen) - 1, "wall_s": pace})  # in any order
        )
        self._observer.stepped(shown, self.num_steps)
        return shown


def pace_of(rows: Sequence[Mapping[str, Any]], warm_up: int) -> dict[str, Any]:
    """images_per_s and step_s of steps that end one after another, whoever did them.

    A step's time is here how long it is until as many more as there are replicas have ended,
    divided by how many these are.
    """
    nothing: dict[str, Any] = {"images_per_s": None, "step_s": {"median": None, "p90": None}}
    ordered = sorted(rows, key=lambda row: row["time"])
    replicas = len({row["rank"] for row in ordered})
    kept = ordered[min(warm_up * max(1, replicas), max(0, len(ordered) - 2)) :]
    # The last steps of a run are of those who are not done yet, alone.
    if len(kept) > 4 * replicas:
        kept = kept[: len(kept) - replicas]
    if len(kept) < 2:
        return nothing
    ends = [row["time"] for row in kept]
    span = ends[-1] - ends[0]
    if span <= 0:
        return nothing
    size = max(1, min(replicas, len(ends) - 1))
    times = [(ends[i + size] - ends[i]) / size for i in range(len(ends) - size)]
    tenths = statistics.quantiles(times, n=10, method="inclusive") if len(times) > 1 else times
    return {
        "images_per_s": sum(row["samples"] for row in kept[1:]) / span,
        "step_s": {"median": statistics.median(times), "p90": tenths[-1]},
    }
