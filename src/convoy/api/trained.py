"""What a run left, as a network to be used, and the data that it was trained on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from convoy import networks
from convoy.api.requests import Network, thing_of
from convoy.datasets import DataSet, open_dataset
from convoy.errors import CheckpointError, UsageError
from convoy.runtime.ingredients import DTYPES
from convoy.runtime.run_folder import RunFolder, open_run_folder, read_settings
from convoy.runtime.settings import TrainSettings
from convoy.state import Tensors


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A network with the weights that a run left."""

    folder: RunFolder
    settings: TrainSettings
    network: nn.Module
    data: DataSet


def load_trained(
    run: str | Path,
    *,
    network: Network | None = None,
    dataset: Any = None,
    data_dir: str | Path | None = None,
) -> Trained:
    """The network that `run` left, and its own or another data set.

    Args:
        run: a run folder.
        network: needed only where the run was given a network that no name stands for.
        dataset: another data set with the same image shape and number of classes.
        data_dir: where its files lie.

    Raises:
        UsageError: no run there, or a data set of another shape.
        CheckpointError: the run has not finished, or what it left is damaged.
    """
    folder = open_run_folder(Path(run))
    settings = read_settings(folder)
    tensors, shape, classes = trained_network(folder)
    data = open_dataset(
        thing_of(dataset, settings.data, "dataset"),
        data_dir=Path(data_dir) if data_dir else settings.data_dir,
        seed=settings.seed,
    )
    if data.test.image_shape != shape or data.test.num_classes != classes:
        raise UsageError(
            f"{folder.path} was trained on {'x'.join(map(str, shape))} images of {classes} "
            f"classes; {data.name} has {'x'.join(map(str, data.test.image_shape))} and "
            f"{data.test.num_classes}"
        )
    named = thing_of(network, settings.network, "network")
    if isinstance(named, nn.Module):
        model = named
    else:
        with torch.random.fork_rng(devices=[]):  # its first weights are nobody's concern
            model = networks.build(named, input_shape=data.test.image_shape, num_classes=classes)
    model = model.to(DTYPES[settings.precision])
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UsageError(f"{folder.model} does not fit the network: {error}") from None
    return Trained(folder=folder, settings=settings, network=model, data=data)


def trained_network(folder: RunFolder) -> tuple[Tensors, tuple[int, ...], int]:
    """The network's tensors that a run left, its image shape and its number of classes.

    Raises:
        CheckpointError: the run has not finished, or what it left is damaged.
    """
    if not folder.model.is_file():
        raise CheckpointError(
            f"{folder.path} has no model.safetensors: the run did not finish. Go on with it: "
            f"convoy train --resume {folder.path}"
        )
    try:
        tensors = load_file(folder.model)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder.model} cannot be read: {error}. If the run has checkpoints, it is written "
            f"anew by training on: convoy train --resume {folder.path} with more --epochs"
        ) from None
    plan = folder.path / "plan.json"
    try:
        content = json.loads(plan.read_text(encoding="utf-8"))
        return tensors, tuple(content["image_shape"]), int(content["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{plan} cannot be read ({type(error).__name__}: {error}): expected the image_shape "
            "and classes that the run was planned with"
        ) from None
