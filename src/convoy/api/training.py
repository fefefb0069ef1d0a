"""`convoy.train` and `convoy.evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from convoy.api.requests import (
    Network,
    label_of,
    resolve_settings,
    strategy_of,
    thing_of,
)
from convoy.api.trained import load_trained
from convoy.runtime import torchrun
from convoy.runtime.evaluation import evaluate as judge
from convoy.runtime.formation import Job
from convoy.runtime.ingredients import DTYPES, autocast
from convoy.runtime.observer import LogObserver, Observer
from convoy.runtime.results import RunResult
from convoy.runtime.run import run_with_crew
from convoy.runtime.weights import read_weights
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
    trained = load_trained(run, network=network, dataset=dataset, data_dir=data_dir)
    settings, data = trained.settings, trained.data
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sums = judge(
        trained.network.to(device),
        data,
        range(len(data.test)),
        device=device,
        dtype=DTYPES[settings.precision],
        autocast=lambda: autocast(settings.precision, device),
    )
    return Evaluation(
        run=str(trained.folder.path),
        network=settings.network,
        dataset=data.name,
        samples=sums.samples,
        accuracy=sums.correct / sums.samples,
        loss=sums.loss_sum / sums.samples,
        class_names=list(data.test.class_names),
        confusion=sums.confusion.tolist(),
    )
