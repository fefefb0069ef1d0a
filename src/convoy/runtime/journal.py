"""Where the reports of all ranks come together: records, evaluations, checkpoints, curves.

The same for a crew's driver and for rank 0 under torchrun; only how reports arrive differs.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from convoy.errors import ConvoyError
from convoy.runtime.checkpoint import Checkpoint, write_checkpoint
from convoy.runtime.events import Event
from convoy.runtime.formation import Formation, Part
from convoy.runtime.json_lines import drop_unfinished, finite
from convoy.runtime.observer import Observer
from convoy.runtime.records import Logbook, StepSummary
from convoy.runtime.run_folder import RunFolder
from convoy.runtime.sampler import GlobalOrder
from convoy.runtime.settings import TrainSettings, to_values
from convoy.runtime.tensorboard import Board
from convoy.runtime.timeline import Timeline
from convoy.version import __version__


class Journal:
    """Takes ranks' events and keeps the run folder and the observer up to date."""

    def __init__(
        self,
        folder: RunFolder,
        settings: TrainSettings,
        order: GlobalOrder,
        num_steps: int,
        observer: Observer,
        timeline: Timeline,
    ) -> None:
        self.folder = folder
        self.board = Board(folder.tensorboard)
        self.last_checkpoint: Checkpoint | None = None
        """The newest there is; on disk once the records of the steps before it are."""
        self.evaluation: tuple[int, float, float] | None = None
        """Step, accuracy and loss of the last evaluation."""
        self.layout: str | None = None
        """The memory format in use, once it is chosen."""
        self.convolutions: dict[int, dict[str, str]] = {}
        """By rank and layer, what is computed otherwise than by torch's own."""
        self.last_step = -1
        """The last step that is complete on all ranks."""
        self.first_step_done_s: float | None = None
        """When (time.monotonic) the present crew's first step was known to be done."""
        self.timeline = timeline
        self._settings = settings
        self._num_steps = num_steps
        self._observer = observer
        self._logbook = Logbook(folder.steps, order)
        self._formation: Formation | None = None
        self._sums: dict[tuple[int, int], dict[int, dict[str, Any]]] = defaultdict(dict)
        self._parts: dict[tuple[int, int], dict[int, Part]] = defaultdict(dict)
        self._unwritten: list[Checkpoint] = []

    def begin(self, formation: Formation) -> None:
        """A crew has formed."""
        self._formation = formation
        self.convolutions.clear()  # its ranks are others
        self.first_step_done_s = None
        self._logbook.begin(formation)
        self._sums.clear()
        self._parts.clear()

    def take(self, events: Iterable[Event]) -> list[StepSummary]:
        """Take what ranks reported; return the steps that it completes.

        Raises:
            CheckpointError, ConvoyError: the run folder cannot be written.
        """
        sorted_events: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for kind, content in events:
            sorted_events[kind].append(content)
        steps = self._logbook.take(sorted_events["record"])
        self._completed(steps)
        for chosen in sorted_events["layout"]:
            self.layout = chosen["layout"]
        for one in sorted_events["convolutions"]:
            self.convolutions[one["rank"]] = one["algorithms"]
        for sums in sorted_events["evaluation"]:
            self._evaluate(sums)
        for part in sorted_events["checkpoint"]:
            self._checkpoint(part)
        self._write_checkpoints()
        return steps

    def settle(self, generation: int, step: int) -> None:
        """The crew of `generation` is gone; its successor goes on from `step`."""
        self._completed(self._logbook.settle(generation, step))
        self.first_step_done_s = None
        self.last_step = step - 1
        self._write_checkpoints()

    def close(self) -> None:
        """Write what is on its way, and close all files."""
        with contextlib.ExitStack() as files:
            files.callback(self.board.close)
            files.callback(self._logbook.close)
            if self._unwritten:  # its records did not all come, and will not
                newest = self._unwritten[-1]
                self.settle(newest.generation, newest.step)

    def _completed(self, steps: Sequence[StepSummary]) -> None:
        for step in steps:
            self.last_step = max(self.last_step, step.step)
            self.timeline.mark("first step")
            if self.first_step_done_s is None and self._formation is not None:
                self.first_step_done_s = time.monotonic()
            self._observer.stepped(step, self._num_steps)
        self.board.steps(steps)

    def _evaluate(self, sums: Mapping[str, Any]) -> None:
        formation = self._formation
        if formation is None or sums["generation"] != formation.generation:
            return  # of a crew that is gone, and with it other ranks' parts of the test set
        key = (sums["generation"], sums["step"])
        self._sums[key][sums["rank"]] = dict(sums)
        if len(self._sums[key]) < len(formation.plan.shares):
            return
        of_ranks = self._sums.pop(key).values()
        samples = sum(s["samples"] for s in of_ranks)
        accuracy = sum(s["correct"] for s in of_ranks) / samples
        loss = sum(s["loss_sum"] for s in of_ranks) / samples
        self.evaluation = (sums["step"], accuracy, loss)
        row = {"step": sums["step"], "test_accuracy": accuracy, "test_loss": loss}
        try:
            drop_unfinished(self.folder.evaluations)
            with self.folder.evaluations.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite(row)) + "\n")
        except OSError as error:
            raise ConvoyError(
                f"cannot write {self.folder.evaluations}: {error.strerror}. Make room, then go "
                f"on with --resume {self.folder.path}"
            ) from None
        self.board.evaluation(sums["step"], accuracy, loss)
        self._observer.evaluated(sums["step"], accuracy, loss)

    def _checkpoint(self, report: Mapping[str, Any]) -> None:
        formation = self._formation
        if formation is None or report["generation"] != formation.generation:
            return  # of a crew that is gone: its successor will write its own
        key = (report["generation"], report["step"])
        self._parts[key][report["rank"]] = report["part"]
        if not report["whole"] and len(self._parts[key]) < len(formation.plan.shares):
            return
        parts = self._parts.pop(key)
        checkpoint = Checkpoint(
            step=report["step"],
            generation=formation.generation,
            parts=tuple(parts[rank] for rank in sorted(parts)),
            meta={
                "convoy": __version__,
                "layout": self.layout,
                "shares": list(formation.plan.shares),
                "settings": to_values(self._settings),
            },
        )
        self.last_checkpoint = checkpoint
        self._unwritten.append(checkpoint)

    def _write_checkpoints(self) -> None:
        # A run that goes on from a checkpoint adds to the records of the steps before it, so
        # those come first: a rank's report may arrive later than another's checkpoint.
        while self._unwritten and self._unwritten[0].step <= self.last_step + 1:
            self._logbook.sync()
            write_checkpoint(
                self.folder.checkpoints, self._unwritten.pop(0), keep=self._settings.keep
            )
