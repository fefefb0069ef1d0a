"""A run as TensorBoard shows it: curves of every rank, and the network's graph."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from convoy.errors import ConvoyError
from convoy.runtime.evaluation import judging
from convoy.runtime.records import StepSummary


class Board:
    """Writes scalars of steps and evaluations below a run folder's `tensorboard/`."""

    def __init__(self, folder: Path) -> None:
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

    def step(self, step: StepSummary) -> None:
        """One step: loss and speed over all ranks; times and bytes of each."""
        figures = {"train/loss": step.loss}
        if step.wall_s:
            figures["train/images_per_s"] = step.samples / step.wall_s
        for row in step.ranks:
            if row["compute_s"] is None:
                continue
            label = f"rank {row['rank']} ({row['machine']})"
            for key in ("compute_s", "wait_s", "comm_s", "sent_bytes"):
                figures[f"{key}/{label}"] = row[key]
        self._add(figures, step.step)

    def evaluation(self, step: int, accuracy: float, loss: float) -> None:
        """One evaluation on the test set."""
        self._add({"test/accuracy": accuracy, "test/loss": loss}, step)

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
