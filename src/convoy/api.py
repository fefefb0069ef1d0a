"""Convoy from Python.

import convoy

result = convoy.train(network="cifar10-quick", dataset="cifar10", workers=2, epochs=10)
result = convoy.train(network=MyNet, dataset=(train_set, test_set), strategy="averaging",
                      average_every=16)
print(result.test_accuracy, result.images_per_s)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from convoy import networks
from convoy.cost.layers import LayerFacts, layers_of, totals_of
from convoy.datasets import open_dataset
from convoy.doctor import Check, DoctorOptions, examine
from convoy.errors import CheckpointError, UsageError
from convoy.runtime import torchrun
from convoy.runtime.evaluation import evaluate as judge
from convoy.runtime.formation import Job
from convoy.runtime.ingredients import DTYPES, autocast
from convoy.runtime.observer import LogObserver, Observer
from convoy.runtime.results import RunResult
from convoy.runtime.run import run_with_crew
from convoy.runtime.run_folder import RunFolder, open_run_folder, read_settings
from convoy.runtime.settings import TrainSettings, read_config, settings_from
from convoy.runtime.state import Tensors
from convoy.scaling import ScalingSettings, Simulation, simulate_scaling
from convoy.strategies import make_strategy

FIXED_ON_RESUME = ("network", "data", "seed", "batch_size", "optimizer", "precision")
"""What a run cannot change half-way and still be one run."""
RIVALS = {"epochs": "steps", "steps": "epochs", "workers": "cluster", "cluster": "workers"}
"""Options that exclude each other: the one given later replaces the other."""
GIVEN_IN_PYTHON = "python:"
"""How run.toml marks a network or data set that no name stands for."""

Network = str | nn.Module | Callable[..., nn.Module]


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
        strategy: a name out of `convoy.strategies.STRATEGIES`.
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
        values["network"] = _label(network)
    if dataset is not None:
        values["data"] = _label(dataset)
    settings = resolve_settings(values, config=Path(config) if config else None)
    job = Job(
        settings=settings,
        strategy=make_strategy(settings.strategy, settings.strategy_options),
        network=_thing(network, settings.network, "network"),
        dataset=_thing(dataset, settings.data, "dataset"),
    )
    watching = observer or LogObserver()
    if torchrun.is_present():
        result = torchrun.run(job, watching)
    else:
        result = run_with_crew(job, watching, verbose=verbose)
    if result is not None:
        from convoy import report  # matplotlib takes its time

        report.draw_run(result.folder)
    return result


def resolve_settings(values: Mapping[str, Any], *, config: Path | None) -> TrainSettings:
    """Settings from what was given explicitly, a config file, and the run that is resumed.

    Raises:
        UsageError: something that a resumed run cannot change, is changed.
    """
    from_file = read_config(config) if config else {}
    if config is not None:
        settings_from(from_file, source=str(config))  # so that errors name the file
    merged = {**_without_rivals(from_file, values), **values}
    resume = merged.get("resume")
    if resume is None:
        return settings_from(merged, source="the options")
    folder = open_run_folder(Path(resume).expanduser())
    before = _without_rivals(read_config(folder.settings), merged)
    for name in FIXED_ON_RESUME:
        if name in merged and merged[name] != getattr(read_settings(folder), name):
            raise UsageError(
                f"--{name.replace('_', '-')} {merged[name]} differs from the "
                f"{getattr(read_settings(folder), name)} that {resume} was started with; a "
                "resumed run keeps it. Leave it out, or start a new run"
            )
    if "strategy" in merged and merged["strategy"] != read_settings(folder).strategy:
        before.pop("strategy_options", None)  # those are the other strategy's
    if {"workers", "cluster"} & merged.keys():
        before.pop("shares", None)
    before.pop("out", None)
    return settings_from({**before, **merged}, source="the options")


def _without_rivals(values: Mapping[str, Any], winners: Mapping[str, Any]) -> dict[str, Any]:
    """`values` less what would say the same as one of `winners` in another way."""
    given = {name for name, value in winners.items() if value is not None}
    beaten = {RIVALS[name] for name in given & RIVALS.keys()}
    return {name: value for name, value in values.items() if name not in beaten}


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
    tensors, shape, classes = _trained(folder)
    data = open_dataset(
        _thing(dataset, settings.data, "dataset"),
        data_dir=Path(data_dir) if data_dir else settings.data_dir,
        seed=settings.seed,
    )
    if data.test.image_shape != shape or data.test.num_classes != classes:
        raise UsageError(
            f"{folder.path} was trained on {'x'.join(map(str, shape))} images of {classes} "
            f"classes; {data.name} has {'x'.join(map(str, data.test.image_shape))} and "
            f"{data.test.num_classes}"
        )
    named = _thing(network, settings.network, "network")
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


def _trained(folder: RunFolder) -> tuple[Tensors, tuple[int, ...], int]:
    """The network's tensors that a run left, its image shape and its number of classes."""
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


@dataclass(frozen=True, kw_only=True)
class LayerTable:
    """What a network's layers hold and compute, for one image."""

    network: str
    input: tuple[int, ...]
    """Shape of the image: channels, height, width."""
    layers: tuple[LayerFacts, ...]

    def to_dict(self) -> dict[str, Any]:
        """As `convoy layers --json` prints it."""
        return asdict(self) | {"totals": totals_of(self.layers)}


def layers(
    network: Network,
    *,
    input_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
) -> LayerTable:
    """The leaf layers that an image goes through, in order, with their sizes and work.

    Args:
        network: as for `train`.
        input_shape: channels, height, width; a named network's published ones without it.
        num_classes: likewise; of a network that is built by name or function.

    Raises:
        UsageError: the shape is needed and not given, or such images do not go through.
    """
    published = networks.published_for(network) if isinstance(network, str) else None
    if input_shape is None:
        if published is None:
            raise UsageError(
                f"{_label(network)} was published for no image shape that is known here: say "
                "which with --input, as 3x224x224"
            )
        input_shape = published[0]
    if isinstance(network, nn.Module):
        model = network
    else:
        classes = num_classes or (published[1] if published else 10)
        with torch.device("meta"):
            model = networks.build(network, input_shape=input_shape, num_classes=classes)
    facts = layers_of(model, input_shape)
    return LayerTable(network=_label(network), input=input_shape, layers=facts)


def simulate(
    network: Network | None, settings: ScalingSettings, *, out: str | Path | None = None
) -> Simulation:
    """Predict a network's training on more and more equal nodes; see `ScalingSettings`.

    `out` is a folder for the picture. Raises UsageError where something needed is nowhere said.
    """
    found = simulate_scaling(network, "" if network is None else _label(network), settings)
    if out is not None:
        from convoy import report  # matplotlib takes its time

        report.draw_scaling(found.to_dict(), Path(out))
    return found


def doctor(options: DoctorOptions | None = None) -> list[Check]:
    """Examine this machine, and a cluster if one is named, for what keeps ranks from meeting."""
    return examine(options or DoctorOptions())


def _label(thing: Any) -> str:
    """What run.toml calls a network or data set."""
    if isinstance(thing, str):
        return thing
    if isinstance(thing, tuple | list) and thing:  # (train, test)
        thing = thing[0]
    name = getattr(thing, "__name__", None) or getattr(thing, "name", None) or type(thing).__name__
    return f"{GIVEN_IN_PYTHON}{name}"


def _thing(given: Any, label: str, argument: str) -> Any:
    """What was given, or what its name in the settings stands for."""
    if given is not None:
        return given
    if label.startswith(GIVEN_IN_PYTHON):
        raise UsageError(
            f"the run's {argument} {label.removeprefix(GIVEN_IN_PYTHON)!r} was given in Python, "
            f"and no name stands for it: pass it again, as {argument}=..."
        )
    return label
