"""`convoy.train` and `convoy.evaluate`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from convoy import networks
from convoy.api.requests import (
    Network,
    label_of,
    resolve_settings,
    strategy_of,
    thing_of,
)
from convoy.datasets import open_dataset
from convoy.errors import CheckpointError, UsageError
from convoy.runtime import torchrun
from convoy.runtime.evaluation import evaluate as judge
from convoy.runtime.formation import Job
from convoy.runtime.ingredients import DTYPES, autocast
from convoy.runtime.observer import LogObserver, Observer
from convoy.runtime.results import RunResult
from convoy.runtime.run import run_with_crew
from convoy.runtime.run_folder import (
    RunFolder,
    open_run_folder,
    read_settings,
)
from convoy.runtime.weights import read_weights
from convoy.state import Tensors
from convoy.strategies import UNPLANNED, make_strategy


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A saved network judged on a test set."""

    run: str
    network: str
    dataset: str
    samples: int
    accuracy: float
    loss: float
    class_names: list[str]
    confusion: list[list[int]]
    """[true class][predicted class]: samples."""


def train(
    network: Network | None = None,
    dataset: Any = None,
    strategy: str | None = None,
    workers: int | None = None,
    *,
    config: str | Path | None = None,
    resume: str | Path | None = None,
    observer: Observer | None = None,
    verbose: bool = False,
    **options: Any,
) -> RunResult | None:
    """Train a network and leave a run folder; returns what result.json holds.

    Ranks are Ray actors. Under torchrun this process becomes one of its ranks instead, and only
    rank 0 returns a result; the others return None.

    Args:
        network: a name (`convoy.networks.names()`), `package.module:function`, an nn.Module, or
            a function that builds one. One defined in a script or notebook travels by value.
        dataset: a name (`convoy.datasets.names()`), or a pair of torch data sets.
        strategy: a name out of `convoy.strategies.STRATEGIES`, or `auto`: see docs/planning.md.
        workers: local ranks.
        config: a TOML file of options; those given here win.
        resume: a run folder to go on with.
        observer: is told what happens; by default messages go to logging's "convoy".
        verbose: let Ray's own messages through.
        options: the fields of `TrainSettings` and of the strategy.

    Raises:
        ConvoyError: see `convoy.errors`.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is kept.
    """
    given = {"strategy": strategy, "workers": workers, "resume": resume}
    values = {name: value for name, value in (given | options).items() if value is not None}
    if network is not None:
        values["network"] = label_of(network)
    if dataset is not None:
        values["data"] = label_of(dataset)
    settings = resolve_settings(values, config=Path(config) if config else None)
    job = Job(
        settings=settings,
        strategy=strategy_of(settings),
        network=thing_of(network, settings.network, "network"),
        dataset=thing_of(dataset, settings.data, "dataset"),
        weights=read_weights(settings),
    )
    watching = observer or LogObserver()
    if torchrun.is_present():
        if job.strategy is None:  # its ranks are there already, each with its part to do
            watching.say(f"under torchrun, auto is {UNPLANNED}: nothing is measured")
            job = replace(job, strategy=make_strategy(UNPLANNED, settings.strategy_options))
        result = torchrun.run(job, watching)
    else:
        result = run_with_crew(job, watching, verbose=verbose)
    if result is not None:
        from convoy import report  # matplotlib takes its time

        report.draw_run(result.folder)
    return result


def evaluate(
    run: str | Path,
    *,
    network: Network | None = None,
    dataset: Any = None,
    data_dir: str | Path | None = None,
) -> Evaluation:
    """Judge the network that `run` left, on its own or another data set's test part.

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
    dtype = DTYPES[settings.precision]
    if isinstance(named, nn.Module):
        model = named
    else:
        with torch.random.fork_rng(devices=[]):  # its first weights are nobody's concern
            model = networks.build(named, input_shape=data.test.image_shape, num_classes=classes)
    model = model.to(dtype)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UsageError(f"{folder.model} does not fit the network: {error}") from None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sums = judge(
        model.to(device),
        data,
        range(len(data.test)),
        device=device,
        dtype=dtype,
        autocast=lambda: autocast(settings.precision, device),
    )
    return Evaluation(
        run=str(folder.path),
        network=settings.network,
        dataset=data.name,
        samples=sums.samples,
        accuracy=sums.correct / sums.samples,
        loss=sums.loss_sum / sums.samples,
        class_names=list(data.test.class_names),
        confusion=sums.confusion.tolist(),
    )


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
