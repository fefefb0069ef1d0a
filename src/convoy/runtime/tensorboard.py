"""A run as TensorBoard shows it: curves of every rank, and the network's graph."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from convoy.runtime.records import StepSummary


class Board:
    """Writes scalars of steps and evaluations below a run folder's `tensorboard/`."""

    def __init__(self, folder: Path) -> None:
        self._writer = SummaryWriter(str(folder))

    def graph(self, network: nn.Module, image_shape: tuple[int, int, int]) -> str | None:
        """Add the network's graph; returns why, where it cannot be traced."""
        parameter = next(network.parameters(), torch.zeros(1))
        example = torch.zeros(1, *image_shape, dtype=parameter.dtype, device=parameter.device)
        was_training = network.training
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._writer.add_graph(network.eval(), example)
        except Exception as error:
            return f"the network's graph is not in TensorBoard: {str(error).splitlines()[0]}"
        finally:
            network.train(was_training)
        return None

    def step(self, step: StepSummary) -> None:
        """One step: loss and speed over all ranks; times and bytes of each."""
        at = step.step
        self._writer.add_scalar("train/loss", step.loss, at)
        if step.wall_s:
            self._writer.add_scalar("train/images_per_s", step.samples / step.wall_s, at)
        for row in step.ranks:
            if row["compute_s"] is None:
                continue
            label = f"rank {row['rank']} ({row['machine']})"
            for key in ("compute_s", "wait_s", "comm_s", "sent_bytes"):
                self._writer.add_scalar(f"{key}/{label}", row[key], at)

    def evaluation(self, step: int, accuracy: float, loss: float) -> None:
        """One evaluation on the test set."""
        self._writer.add_scalar("test/accuracy", accuracy, step)
        self._writer.add_scalar("test/loss", loss, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
