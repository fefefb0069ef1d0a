"""How few filters before a cut a network can do with: one training for each number of them.

    OUT/start/f8.toml, f8.safetensors     what a training starts from
    OUT/f8/                               its run folder
    OUT/f8.log                            what it printed
    OUT/narrow.json                       what came of all of them

Source: Ichinose et al. reduce the filters of the convolution before the cut between edge client
and cloud, and retrain.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from convoy import networks
from convoy.errors import ConvoyError
from convoy.networks.narrowed import cut_at
from convoy.runtime.json_lines import finite
from convoy.runtime.run_folder import write_text
from convoy.split.narrow_training import FullRun, NarrowSettings, prepared
from convoy.split.trainings import Training, Watch, progress_of, run_all

FLOAT_BYTES = 4


@dataclass(kw_only=True)
class Narrowed:
    """What came of it: what narrow.json holds."""

    run: str
    cut: str
    from_scratch: bool
    full: dict[str, Any]
    """Of the full network: the keys of a row."""
    filters: list[dict[str, Any]] = field(default_factory=list)
    """A row for each number of filters that has been trained, ascending."""
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return vars(self) | {"folder": str(self.folder)}


def narrow_at(full: FullRun, asked: NarrowSettings, watch: Watch) -> Narrowed:
    """Train the network with each number of filters, and keep the account up to date.

    What has been trained in the folder already is not trained again.

    Raises:
        UsageError: the network cannot be narrowed so; nothing was started.
        ConvoyError: trainings failed; the others are done.
    """
    folder = asked.folder(full.path)
    label, shape = full.settings.network, full.image_shape
    with torch.device("meta"):
        network = networks.build(label, input_shape=shape, num_classes=full.classes)
    cut = cut_at(network, label, asked.cut, shape)
    # Every number of them is looked at before the first is trained.
    sizes = {count: _size(full, asked.cut, count) for count in sorted(asked.filters)}
    per_filter = FLOAT_BYTES * math.prod(cut.shape) // cut.filters
    narrowed = Narrowed(
        run=str(full.path),
        cut=asked.cut,
        from_scratch=asked.from_scratch,
        folder=folder,
        full={
            "filters": cut.filters,
            "network": label,
            "run": str(full.path),
            "accuracy": full.accuracy,
            "loss": full.loss,
            "epochs": full.epochs,
            "parameters": _parameters(network),
            "bytes_per_image_float32": per_filter * cut.filters,
        },
    )

    def account(training: Training, count: int) -> None:
        result = json.loads(training.folder.result.read_bytes())
        row = {
            "filters": count,
            "network": result["network"],
            "run": str(training.folder.path),
            "accuracy": result["test_accuracy"],
            "loss": result["test_loss"],
            "epochs": result["epochs"],
            "parameters": sizes[count],
            "bytes_per_image_float32": per_filter * count,
        }
        narrowed.filters = sorted([*narrowed.filters, row], key=lambda each: each["filters"])
        write_text(folder / "narrow.json", json.dumps(finite(narrowed.to_dict()), indent=2) + "\n")

    _carry_out(full, asked, folder, account, watch)
    return narrowed


def _carry_out(
    full: FullRun,
    asked: NarrowSettings,
    folder: Path,
    account: Callable[[Training, int], None],
    watch: Watch,
) -> None:
    found = {count: prepared(full, asked, folder, count) for count in sorted(asked.filters)}
    counts = {training.label: count for count, (training, _) in found.items()}
    for count, (training, is_done) in found.items():
        if is_done:
            watch(progress_of(training, ended=True))
            account(training, count)
    to_do = [training for training, is_done in found.values() if not is_done]
    failures: list[str] = []
    for training, failure in run_all(to_do, watch, at_once=asked.workers):
        if failure is None:
            account(training, counts[training.label])
        else:
            failures.append(f"{failure}; all that it said is in {training.log}")
    if failures:
        raise ConvoyError(
            f"{'; '.join(failures)}. The others are done: mend this, and the same command does "
            "the rest"
        )


def _size(full: FullRun, cut: str, count: int) -> int:
    name = f"{full.settings.network}@{cut}:{count}"
    with torch.device("meta"):
        network = networks.build(name, input_shape=full.image_shape, num_classes=full.classes)
    return _parameters(network)


def _parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
