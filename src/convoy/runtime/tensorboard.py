"""A run as TensorBoard shows it: curves of every rank, and the network's graph."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import fmean

import torch
from torch import nn

from convoy.errors import ConvoyError
from convoy.runtime.evaluation import judging
from convoy.runtime.records import StepSummary


class Board:
    """Writes scalars of steps and evaluations below a run folder's `tensorboard/`."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a tenth of a second at every start

        self._folder = folder
        with self._writing():
            self._writer = SummaryWriter(str(folder))

    def graph(self, network: nn.Module, image_shape: tuple[int, int, int]) -> str | None:
        """Add the network's graph; returns why, where it cannot be traced."""
        parameter = next(network.parameters(), torch.zeros(1))
        example = torch.zeros(1, *image_shape, dtype=parameter.dtype, device=parameter.device)
        with judging(network), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with redirect_stdout(StringIO()):  # where torch prints what it also raises
                    self._writer.add_graph(network, example)
            except Exception as error:
                lines = [line for line in str(error).splitlines() if line.strip()]
                reason = lines[0] if lines else type(error).__name__
                return f"the network's graph is not in TensorBoard: {reason}"
        return None

    def steps(self, steps: Sequence[StepSummary]) -> None:
        """Loss and speed over all ranks, times and bytes of each: one point for all of `steps`.

        A small network does hundreds of steps a second; a point for each would take a core from
        the ranks. `steps.jsonl` has every one.
        """
        if not steps:
            return
        samples = sum(step.samples for step in steps)
        figures = {"train/loss": sum(step.loss * step.samples for step in steps) / samples}
        timed = [step for step in steps if step.wall_s]
        if timed:
            seconds = sum(step.wall_s for step in timed)
            figures["train/images_per_s"] = sum(step.samples for step in timed) / seconds
        of_ranks: defaultdict[str, list[float]] = defaultdict(list)
        for step in steps:
            for row in step.ranks:
                label = f"rank {row['rank']} ({row['machine']})"
                for key in ("compute_s", "wait_s", "comm_s", "sent_bytes"):
                    if row[key] is not None:
                        of_ranks[f"{key}/{label}"].append(row[key])
        figures |= {name: fmean(values) for name, values in of_ranks.items()}
        self._add(figures, steps[-1].step)

    def evaluation(self, step: int, accuracy: float, loss: float) -> None:
        """One evaluation on the test set."""
        self._add({"test/accuracy": accuracy, "test/loss": loss}, step)

    def staleness(self, pushes: Mapping[int, int], step: int) -> None:
        """How many versions pushes were behind, so far: pushes by number of versions."""
        total = sum(pushes.values())
        if not total:
            return
        mean = sum(behind * count for behind, count in pushes.items()) / total
        self._add({"staleness/mean": mean, "staleness/max": max(pushes)}, step)
        edges = [float(behind) for behind in range(max(pushes) + 1)]
        counts = [pushes.get(behind, 0) for behind in range(max(pushes) + 1)]
        with self._writing():
            self._writer.add_histogram_raw(
                "staleness",
                min=0.0,
                max=edges[-1],
                num=total,
                sum=mean * total,
                sum_squares=sum(behind**2 * count for behind, count in pushes.items()),
                bucket_limits=edges,
                bucket_counts=counts,
                global_step=step,
            )

    def close(self) -> None:
        """Flush and close."""
        with self._writing():
            self._writer.close()

    def _add(self, figures: Mapping[str, float], step: int) -> None:
        with self._writing():
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConvoyError(
                f"cannot write {self._folder}: {error.strerror}. Make room, then go on with "
                f"--resume {self._folder.parent}"
            ) from None
