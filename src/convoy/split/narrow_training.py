"""One training with fewer filters: its settings, its weights and what there is of it already."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass, fields, replace
from pathlib import Path

import tomli_w
from safetensors.torch import save

from convoy import networks
from convoy.errors import UsageError
from convoy.runtime.checkpoint import newest_checkpoint
from convoy.runtime.optimization import base_lr
from convoy.runtime.run_folder import (
    RunFolder,
    check_vacant,
    read_settings,
    write_bytes,
    write_text,
)
from convoy.runtime.settings import TrainSettings, flag, to_values
from convoy.split.trainings import Training
from convoy.state import Tensors

FINE_TUNED_PART = 4
"""Fine-tuning takes one of so many epochs of the full training, as Li et al. (2017, section 4)."""
FROM_SCRATCH = "-from-scratch"
"""What the folder of such networks is called after the cut."""
FINE_TUNED_LR = 0.1
"""Its learning rate, as a part of that of the full training."""

_ELSEWHERE = ("out", "data_dir", "threads_per_worker", "timeout_s", "keep", "weights")
"""Settings that do not change what is computed, or that are compared in another way."""


@dataclass(frozen=True, kw_only=True)
class FullRun:
    """A finished run, whose network is narrowed."""

    path: Path
    settings: TrainSettings
    tensors: Tensors
    """Of the trained network."""
    image_shape: tuple[int, int, int]
    classes: int
    accuracy: float
    loss: float
    epochs: float


@dataclass(frozen=True, kw_only=True)
class NarrowSettings:
    """What is to be found out. Checked on construction.

    Raises:
        UsageError: a value out of range.
    """

    cut: str
    """The layer after which the network is to be cut."""
    filters: tuple[int, ...]
    """Numbers of filters of the convolution before it."""
    from_scratch: bool = False
    """Begin with first weights, and not with the full network's."""
    epochs: int | None = None
    """Without it those of the full training; of fine-tuning a quarter, rounded up."""
    lr: float | None = None
    """Learning rate; without it that of the full training, and of fine-tuning a tenth of it."""
    workers: int = 1
    """How many trainings at a time."""
    out: Path | None = None
    """Folder for everything; RUN/narrow/CUT without it, or RUN/narrow/CUT-from-scratch."""
    data_dir: Path | None = None
    """Where data files lie, if not where they did."""

    def __post_init__(self) -> None:
        if not self.filters or len(set(self.filters)) < len(self.filters):
            given = ",".join(map(str, self.filters))
            raise UsageError(f"--filters {given}: expected different numbers, as in 1,4,8")
        for name in ("epochs", "lr", "workers"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{flag(name)} {value}: expected a number above 0")

    def folder(self, run: Path) -> Path:
        """Where everything goes."""
        return self.out or run / "narrow" / (self.cut + FROM_SCRATCH * self.from_scratch)


def prepared(
    full: FullRun, asked: NarrowSettings, folder: Path, count: int
) -> tuple[Training, bool]:
    """A training with `count` filters, its files in place, and whether it has been done already.

    Raises:
        UsageError: there is a training of something else where it is to be.
        ConvoyError: a file cannot be written.
    """
    run, start = RunFolder(folder / f"f{count}"), folder / "start"
    network = f"{full.settings.network}@{asked.cut}:{count}"
    settings = _settings(full, asked, network, run.path)
    file = start / f"f{count}.safetensors"
    weights: bytes | None = None
    if not asked.from_scratch:
        settings = replace(settings, weights=file)
        tensors = networks.narrow_weights(
            network, full.tensors, input_shape=full.image_shape, num_classes=full.classes
        )
        weights = save(tensors)
    there = run.settings.is_file()
    if there:
        _check_same(run, settings, file, weights)
    else:
        check_vacant(run.path)
    is_done = there and run.steps_concluded() > 0 and run.model.is_file()
    resumes = there and not is_done and newest_checkpoint(run.checkpoints)[0] is not None
    if there and not is_done and not resumes:  # it was stopped before it had anything to keep
        shutil.rmtree(run.path)
    config = start / f"f{count}.toml"
    try:
        start.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {start}: {error.strerror}") from None
    write_text(config, tomli_w.dumps(to_values(settings)))
    if weights is not None:
        write_bytes(file, weights)
    arguments = ("--resume", str(run.path)) if resumes else ("--config", str(config))
    log = folder / f"f{count}.log"
    return Training(label=network, folder=run, arguments=arguments, log=log), is_done


def _settings(full: FullRun, asked: NarrowSettings, network: str, out: Path) -> TrainSettings:
    """Those of the full training, on one device; shorter and gentler where it is fine-tuning."""
    settings = replace(
        full.settings,
        network=network,
        strategy="single",
        strategy_options={},
        workers=None,
        cluster=None,
        profile=None,
        shares=None,
        resume=None,
        weights=None,
        out=out,
        data_dir=asked.data_dir or full.settings.data_dir,
        threads_per_worker=max(1, len(os.sched_getaffinity(0)) // asked.workers),
    )
    if not asked.from_scratch:
        falls = settings.lr_step_epochs
        settings = replace(
            settings,
            epochs=None if settings.steps else _part(settings.epochs or 10),
            steps=_part(settings.steps) if settings.steps else None,
            lr=FINE_TUNED_LR * base_lr(settings),
            lr_step_epochs=_part(falls) if falls else None,
            warmup=0,
        )
    if asked.epochs is not None:
        settings = replace(settings, epochs=asked.epochs, steps=None)
    return settings if asked.lr is None else replace(settings, lr=asked.lr)


def _part(count: int) -> int:
    return -(-count // FINE_TUNED_PART)


def _check_same(run: RunFolder, settings: TrainSettings, file: Path, weights: bytes | None) -> None:
    """Raise UsageError if there is a training of something else in the folder."""
    before = read_settings(run)
    differ = [
        flag(f.name)
        for f in fields(TrainSettings)
        if f.name not in _ELSEWHERE and getattr(before, f.name) != getattr(settings, f.name)
    ]
    if (before.weights is None) != (settings.weights is None):
        differ.append("--from-scratch")
    if differ:
        was = f"was trained with another {' and another '.join(differ)}"
    elif weights is not None and file.is_file() and file.read_bytes() != weights:
        was = "began with other weights: the full network has been trained since"
    else:
        return
    raise UsageError(f"{run.path} {was}. Give another --out, or remove that folder")
