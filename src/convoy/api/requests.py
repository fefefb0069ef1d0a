"""What callers ask for, as settings and jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convoy import networks
from convoy.errors import UsageError
from convoy.networks import Shape
from convoy.runtime.formation import Job
from convoy.runtime.run_folder import (
    open_run_folder,
    read_settings,
)
from convoy.runtime.settings import TrainSettings, read_config, settings_from
from convoy.runtime.weights import read_weights
from convoy.strategies import AUTO, STRATEGIES, UNPLANNED, Strategy, candidates, make_strategy

FIXED_ON_RESUME = ("network", "data", "seed", "batch_size", "optimizer", "precision")
"""What a run cannot change half-way and still be one run."""
RIVALS = {"epochs": "steps", "steps": "epochs", "workers": "cluster", "cluster": "workers"}
"""Options that exclude each other: the one given later replaces the other."""
GIVEN_IN_PYTHON = "python:"
"""How run.toml marks a network or data set that no name stands for."""

Network = str | nn.Module | Callable[..., nn.Module]


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


def strategy_of(settings: TrainSettings) -> Strategy | None:
    """The strategy asked for; None where the planner is to choose one of those that are exact."""
    if settings.strategy != AUTO:
        return make_strategy(settings.strategy, settings.strategy_options)
    if settings.shares is not None:
        return make_strategy(UNPLANNED, settings.strategy_options)
    exact = [name for name, s in STRATEGIES.items() if s.exact and s.proven]
    candidates(settings.strategy_options, exact)  # before anything is started
    return None


def job_of(network: Network, dataset: Any, options: Mapping[str, Any]) -> Job:
    """What measuring and planning are asked about; made-up images if there is no data set."""
    values = {"network": label_of(network)} | dict(options)
    if dataset is None and "data" not in values:
        published = networks.published_for(network) if isinstance(network, str) else None
        if published is None:
            raise UsageError(
                f"{label_of(network)} was published for no image shape that is known here: say "
                "what it is to be trained on, as --data synthetic:3x32x32:10"
            )
        dataset = made_up(*published)
    if dataset is not None:
        values["data"] = label_of(dataset)
    settings = resolve_settings(values, config=None)
    return Job(
        settings=settings,
        strategy=None,
        network=thing_of(network, settings.network, "network"),
        dataset=thing_of(dataset, settings.data, "dataset"),
        weights=read_weights(settings),
    )


def without_weights(
    network: Network, input_shape: Shape | None, num_classes: int | None = None
) -> tuple[nn.Module, Shape]:
    """A network to look at, on torch's meta device if it is built here, and an image's shape.

    Args:
        network: as for `train`.
        input_shape: channels, height, width; a named network's published ones without it.
        num_classes: likewise.

    Raises:
        UsageError: the shape is needed and not given.
    """
    published = networks.published_for(network) if isinstance(network, str) else None
    if input_shape is None:
        if published is None:
            raise UsageError(
                f"{label_of(network)} was published for no image shape that is known here: say "
                "which with --input, as 3x224x224"
            )
        input_shape = published[0]
    if isinstance(network, nn.Module):
        return network, input_shape
    classes = num_classes or (published[1] if published else 10)
    with torch.device("meta"):
        return networks.build(network, input_shape=input_shape, num_classes=classes), input_shape


def made_up(shape: tuple[int, ...], classes: int) -> str:
    """The name of a data set of made-up images."""
    return f"synthetic:{'x'.join(map(str, shape))}:{classes}"


def label_of(thing: Any) -> str:
    """What run.toml calls a network or data set."""
    if isinstance(thing, str):
        return thing
    if isinstance(thing, tuple | list) and thing:  # (train, test)
        thing = thing[0]
    name = getattr(thing, "__name__", None) or getattr(thing, "name", None) or type(thing).__name__
    return f"{GIVEN_IN_PYTHON}{name}"


def thing_of(given: Any, label: str, argument: str) -> Any:
    """What was given, or what its name in the settings stands for."""
    if given is not None:
        return given
    if label.startswith(GIVEN_IN_PYTHON):
        raise UsageError(
            f"the run's {argument} {label.removeprefix(GIVEN_IN_PYTHON)!r} was given in Python, "
            f"and no name stands for it: pass it again, as {argument}=..."
        )
    return label
