"""What a training run is told: the options of `convoy train`, in Python and in TOML.

    settings = TrainSettings(network="cifar10-quick", data="cifar10", workers=2, epochs=10)

Names are those of the flags with underscores for hyphens; a TOML file may use either.
"""

from __future__ import annotations

import contextlib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from convoy.errors import UnknownNameError, UsageError
from convoy.kernels import passes
from convoy.strategies import AUTO, STRATEGIES

CUSTOMARY_OPTIMIZER = "sgd"
OPTIMIZERS = ("sgd", "adam", "adamax", "adagrad", "adadelta")
LR_SCHEDULES = ("constant", "step", "cosine")
PRECISIONS = ("fp32", "bf16", "fp64")
MEMORY_FORMATS = ("auto", "contiguous", "channels-last")
CONV_ALGORITHMS = (passes.AUTO, *passes.CHOICES)
AUGMENTS = ("none", "flip-crop")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Everything that decides what a run computes and where. Checked on construction.

    Raises:
        UsageError: a value out of range or a combination that makes no sense.
    """

    network: str = "chavan:3-64-128-10"
    """Name of a network, or `package.module:function` that builds one."""
    data: str = "digits"
    """Name of a data set; see `convoy.datasets`."""
    data_dir: Path | None = None
    """Where its files lie; without it CONVOY_DATA, then the user's cache folder."""
    strategy: str = AUTO
    """How training is distributed; `auto` measures, plans and takes what is fastest."""
    strategy_options: Mapping[str, Any] = field(default_factory=dict)
    """What is particular to the strategy: wire, batch_norm, average_every, sync_first."""
    workers: int | None = None
    """Local ranks; without it one per GPU, else one per two cores but at least two."""
    cluster: str | None = None
    """A cluster file, `ray` (the Ray cluster this machine belongs to) or `ray://HOST`."""
    profile: Path | None = None
    """To plan with; where planning needs one, and there is none here, it is one from the cache, or
    measured."""
    shares: tuple[float, ...] | None = None
    """Proportions of the batch by rank; without it by what was measured, or by cores."""
    rebalance: bool = True
    """Whether shares follow machines that become slower or faster; not those given by `shares`."""
    batch_size: int = 64
    """Samples per step over all ranks."""
    epochs: int | None = None
    """Passes over the training set; 10 if neither this nor `steps` is given."""
    steps: int | None = None
    """Steps, in place of `epochs`."""
    optimizer: str = ""
    """Without it the strategy's customary one: sgd, and adagrad for downpour."""
    lr: float | None = None
    """Learning rate; without it the optimizer's customary one (see `optimization.py`)."""
    momentum: float = 0.9
    """For sgd."""
    weight_decay: float = 0.0
    lr_schedule: str = "constant"
    """`step` multiplies by `lr_gamma` every `lr_step_epochs`; `cosine` falls to 0 at the end."""
    lr_step_epochs: int | None = None
    """For `step`; a third of the run without it."""
    lr_gamma: float = 0.1
    """For `step`."""
    warmup: int = 0
    """Steps over which the learning rate rises linearly from 0."""
    seed: int = 0
    precision: str = "fp32"
    """`bf16` is autocast over float32 parameters; `fp64` is for checking exactness."""
    weights: Path | None = None
    """A safetensors file whose tensors the network starts from, in place of first weights; a run
    that is resumed has its own."""
    memory_format: str = "auto"
    """`auto` times a few steps of both layouts and takes the faster."""
    conv_algorithm: str = passes.TORCH
    """torch's own, one of ours, or with `auto` the fastest here, layer by layer."""
    augment: str = "none"
    """`flip-crop`: random horizontal flips and crops out of 4 pixels of padding."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; without it one per epoch."""
    keep: int = 3
    """How many checkpoints to keep."""
    resume: Path | None = None
    """A run folder to go on with."""
    out: Path | None = None
    """The run folder; without it `runs/<network>-<data>-<time>`."""
    threads_per_worker: int | None = None
    """Threads of a rank; without it the machine's cores divided by its ranks."""
    timeout_s: float = 60.0
    """How long a rank waits for a peer that neither answers nor fails."""

    def __post_init__(self) -> None:
        _one_of("strategy", self.strategy, (AUTO, *STRATEGIES))
        kind = STRATEGIES.get(self.strategy)
        if not self.optimizer:
            customary = kind.customary_optimizer if kind else CUSTOMARY_OPTIMIZER
            object.__setattr__(self, "optimizer", customary)
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("lr schedule", self.lr_schedule, LR_SCHEDULES)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("memory format", self.memory_format, MEMORY_FORMATS)
        _one_of("convolution algorithm", self.conv_algorithm, CONV_ALGORITHMS)
        if self.conv_algorithm not in (passes.AUTO, passes.TORCH) and self.precision == "bf16":
            raise UsageError(
                f"--conv-algorithm {self.conv_algorithm} computes in float32 and float64: with "
                "--precision bf16 expected torch or auto"
            )
        _one_of("augmentation", self.augment, AUGMENTS)
        for name in (
            *("batch_size", "workers", "epochs", "steps", "checkpoint_every", "keep"),
            *("threads_per_worker", "lr", "timeout_s", "lr_gamma", "lr_step_epochs"),
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{flag(name)} {value}: expected a number above 0")
        for name in ("warmup", "weight_decay", "momentum", "seed"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UsageError(f"{flag(name)} {value}: expected 0 or more")
        if self.epochs is not None and self.steps is not None:
            raise UsageError("--epochs and --steps say the same thing twice: give one of them")
        if self.workers is not None and self.cluster is not None:
            raise UsageError(
                "--workers is for this machine alone and --cluster for several: give one of them"
            )
        plans = self.strategy == AUTO or (kind is not None and kind.takes_profile)
        if self.profile is not None and (not plans or self.shares is not None):
            names = [AUTO, *(name for name, s in STRATEGIES.items() if s.takes_profile)]
            raise UsageError(
                f"--profile is what --strategy {' or '.join(names)} plans with, without --shares: "
                "leave one out"
            )
        if kind is not None and kind.asynchronous and self.checkpoint_every is not None:
            raise UsageError(
                f"--checkpoint-every counts steps that all ranks do together; --strategy "
                f"{self.strategy} takes snapshots by time: give --snapshot-s"
            )
        if self.shares is not None and not all(0 < s < math.inf for s in self.shares):
            raise UsageError(
                f"--shares {','.join(f'{s:g}' for s in self.shares)}: expected numbers above 0"
            )


def flag(name: str) -> str:
    """How the field `name` is called on the command line."""
    return "--" + name.replace("_", "-")


def settings_from(values: Mapping[str, Any], *, source: str) -> TrainSettings:
    """Settings from loosely typed `values`, as a TOML file or a command line gives them.

    A strategy's own options may stand among the others. `source` is named in errors.

    Raises:
        UnknownNameError: a key that no field has; offers the nearest.
        UsageError: a value of the wrong type.
    """
    hints = get_type_hints(TrainSettings)
    own = {f.name for f in fields(TrainSettings)}
    of_strategies = {f.name for s in STRATEGIES.values() for f in fields(s)}  # type: ignore[arg-type]
    typed: dict[str, Any] = {}
    given = {key.replace("-", "_"): value for key, value in values.items()}
    options = _table(given.pop("strategy_options", {}), source)
    for name, value in given.items():
        if name in own:
            typed[name] = _typed(name, value, hints[name], source)
        elif name in of_strategies:
            options[name] = value
        else:
            raise UnknownNameError(f"option in {source}", name, own | of_strategies)
    return TrainSettings(**typed, strategy_options=options)


def read_config(path: Path) -> dict[str, Any]:
    """The keys and values of a TOML file of settings, names with underscores."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read --config {path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    return {key.replace("-", "_"): value for key, value in values.items()}


def to_values(settings: TrainSettings) -> dict[str, Any]:
    """`settings` as plain values that `settings_from` and TOML take; None is left out."""
    values: dict[str, Any] = {}
    for f in fields(settings):
        value = getattr(settings, f.name)
        if isinstance(value, Path):
            value = str(value)
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, Mapping):
            value = dict(value)
        if value is not None and value != {}:
            values[f.name] = value
    return values


def _one_of(kind: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise UnknownNameError(kind, name, known)


def _typed(name: str, value: Any, hint: Any, source: str) -> Any:
    wanted = [t for t in (get_args(hint) or (hint,)) if t is not type(None)]
    if value is None and len(wanted) < len(get_args(hint)):
        return None
    kind = wanted[0]
    if kind is Path and isinstance(value, str | Path):
        return Path(value).expanduser()
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (bool, int, str) and type(value) is kind:
        return value
    if name == "shares":
        return _shares(value, source)
    wording = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        Path: "a path",
    }[kind]
    raise UsageError(f"{flag(name)} in {source}: expected {wording}, got {value!r}")


def _shares(value: Any, source: str) -> tuple[float, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    with contextlib.suppress(TypeError, ValueError):
        shares = tuple(float(part) for part in parts if not isinstance(part, bool))
        if shares and len(shares) == len(parts):
            return shares
    raise UsageError(
        f"--shares in {source}: expected numbers separated by commas, as in 2,1; got {value!r}"
    )


def _table(value: Any, source: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"--strategy-options in {source}: expected a table, got {value!r}")
    return {key.replace("-", "_"): option for key, option in value.items()}
