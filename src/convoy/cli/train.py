"""`convoy train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from convoy import api
from convoy.cli.console import console, print_json, stdout_for
from convoy.cli.entering import cluster_named, enter_lab
from convoy.cli.strategy_options import with_strategy_options
from convoy.cli.watching import Watcher, show_result
from convoy.networks import names as network_names
from convoy.runtime.settings import (
    AUGMENTS,
    CONV_ALGORITHMS,
    LR_SCHEDULES,
    MEMORY_FORMATS,
    OPTIMIZERS,
    PRECISIONS,
)
from convoy.strategies import STRATEGIES

WHAT, WHERE, HOW, KEEPING = "What", "Where", "How", "Keeping"


def _one_of(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names)


@with_strategy_options(HOW)
def train(
    network: Annotated[
        str | None,
        Option(
            help=f"{_one_of(network_names())}, or package.module:function; NAME@CUT:F has F "
            "filters before the layer CUT.",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        Option(
            help="digits, mnist, cifar10, folder:PATH, synthetic:CxHxW:classes, or "
            "package.module:function.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, Option(help="Where data files lie.", rich_help_panel=WHAT)
    ] = None,
    config: Annotated[
        Path | None, Option(help="TOML file of options; flags win.", rich_help_panel=WHAT)
    ] = None,
    strategy: Annotated[
        str | None,
        Option(
            help="auto (the default): measure, plan and take the fastest; "
            + "; ".join(f"{s.name}: {s.summary}" for s in STRATEGIES.values())
            + ".",
            rich_help_panel=WHERE,
        ),
    ] = None,
    workers: Annotated[
        int | None, Option(help="Ranks on this machine.", rich_help_panel=WHERE)
    ] = None,
    cluster: Annotated[
        str | None, Option(help="Cluster file, ray, or ray://HOST.", rich_help_panel=WHERE)
    ] = None,
    profile: Annotated[
        Path | None,
        Option(help="auto: plan with these figures, from `convoy measure`.", rich_help_panel=WHERE),
    ] = None,
    shares: Annotated[
        str | None,
        Option(help="Proportions of the batch, as 2,1; kept throughout.", rich_help_panel=WHERE),
    ] = None,
    rebalance: Annotated[
        bool | None,
        Option(
            "--rebalance/--no-rebalance",
            help="Cut shares anew when machines become slower or faster (the default), unless "
            "--shares gives them.",
            show_default=False,
            rich_help_panel=WHERE,
        ),
    ] = None,
    threads_per_worker: Annotated[int | None, Option(rich_help_panel=WHERE)] = None,
    timeout_s: Annotated[
        float | None,
        Option(help="How long to wait for a silent peer.", rich_help_panel=WHERE),
    ] = None,
    batch_size: Annotated[
        int | None, Option(help="Samples per step over all ranks.", rich_help_panel=HOW)
    ] = None,
    epochs: Annotated[int | None, Option(rich_help_panel=HOW)] = None,
    steps: Annotated[int | None, Option(help="In place of epochs.", rich_help_panel=HOW)] = None,
    optimizer: Annotated[str | None, Option(help=_one_of(OPTIMIZERS), rich_help_panel=HOW)] = None,
    lr: Annotated[float | None, Option(help="Learning rate.", rich_help_panel=HOW)] = None,
    momentum: Annotated[float | None, Option(rich_help_panel=HOW)] = None,
    weight_decay: Annotated[float | None, Option(rich_help_panel=HOW)] = None,
    lr_schedule: Annotated[
        str | None, Option(help=_one_of(LR_SCHEDULES), rich_help_panel=HOW)
    ] = None,
    lr_step_epochs: Annotated[
        int | None, Option(help="For step: epochs between falls.", rich_help_panel=HOW)
    ] = None,
    lr_gamma: Annotated[
        float | None, Option(help="For step: what to multiply by.", rich_help_panel=HOW)
    ] = None,
    warmup: Annotated[
        int | None, Option(help="Steps of rising learning rate.", rich_help_panel=HOW)
    ] = None,
    augment: Annotated[str | None, Option(help=_one_of(AUGMENTS), rich_help_panel=HOW)] = None,
    weights: Annotated[
        Path | None,
        Option(
            help="safetensors file to start from in place of first weights.", rich_help_panel=HOW
        ),
    ] = None,
    seed: Annotated[int | None, Option(rich_help_panel=HOW)] = None,
    precision: Annotated[str | None, Option(help=_one_of(PRECISIONS), rich_help_panel=HOW)] = None,
    memory_format: Annotated[
        str | None, Option(help=_one_of(MEMORY_FORMATS), rich_help_panel=HOW)
    ] = None,
    conv_algorithm: Annotated[
        str | None,
        Option(help=f"Of convolutions: {_one_of(CONV_ALGORITHMS)}", rich_help_panel=HOW),
    ] = None,
    checkpoint_every: Annotated[
        int | None, Option(help="Steps; once per epoch without it.", rich_help_panel=KEEPING)
    ] = None,
    keep: Annotated[
        int | None, Option(help="How many checkpoints to keep.", rich_help_panel=KEEPING)
    ] = None,
    resume: Annotated[
        Path | None, Option(help="Run folder to go on with.", rich_help_panel=KEEPING)
    ] = None,
    out: Annotated[Path | None, Option(help="Run folder.", rich_help_panel=KEEPING)] = None,
    json: Annotated[bool, Option("--json", help="Print result.json on stdout.")] = False,
    verbose: Annotated[bool, Option("--verbose", "-v", help="Ray's own messages too.")] = False,
    **strategy_options: Any,
) -> None:
    """Train a network, on one device or distributed over many, and leave a run folder."""
    options = locals() | strategy_options
    for name in ("json", "verbose", "strategy_options"):
        del options[name]
    options = {name: value for name, value in options.items() if value is not None}
    if "data" in options:
        options["dataset"] = options.pop("data")
    enter_lab(cluster_named(cluster, config, resume))
    output = console(as_json=json)
    output.quiet = os.environ.get("RANK", "0") != "0"
    with stdout_for(as_json=json), Watcher(output) as watcher:
        result = api.train(**options, observer=watcher, verbose=verbose)
    if result is None:  # another rank reports
        return
    if json:
        print_json(result.to_dict())
    else:
        show_result(output, result)
