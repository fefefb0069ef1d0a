"""A run folder: everything a run leaves, under one roof.

run.toml  host.json  plan.json  steps.jsonl  evaluations.jsonl  result.json
checkpoints/  tensorboard/  model.safetensors  run.png
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import tempfile
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors.torch import save

from convoy.errors import ConvoyError, UsageError
from convoy.runtime.json_lines import finite
from convoy.runtime.settings import TrainSettings, settings_from, to_values
from convoy.state import Tensors
from convoy.version import __version__


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.steps = path / "steps.jsonl"
        self.evaluations = path / "evaluations.jsonl"
        self.result = path / "result.json"
        self.model = path / "model.safetensors"
        self.tensorboard = path / "tensorboard"
        self.settings = path / "run.toml"
        self.picture = path / "run.png"

    def write_settings(self, settings: TrainSettings) -> None:
        """Write `run.toml`: the settings in full."""
        write_text(self.settings, tomli_w.dumps(to_values(settings)))

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write one JSON file, whole or not at all."""
        write_text(self.path / name, json.dumps(finite(value), indent=2, default=str) + "\n")

    def steps_concluded(self) -> int:
        """The length of the run that `result.json` tells of; 0 where there is none."""
        try:
            return int(json.loads(self.result.read_text(encoding="utf-8"))["steps"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def write_model(self, tensors: Tensors, meta: Mapping[str, str]) -> None:
        """Write `model.safetensors`: the trained network's parameters and buffers."""
        write_bytes(self.model, save(tensors, metadata=dict(meta)))


def create_run_folder(settings: TrainSettings) -> RunFolder:
    """Make the folder of a new run.

    Raises:
        UsageError: it exists and holds something, or cannot be made.
    """
    try:
        if settings.out is not None:
            settings.out.mkdir(parents=True, exist_ok=True)
            check_vacant(settings.out)
            return RunFolder(settings.out)
        label = f"{settings.network}-{settings.data}-{time.strftime('%Y%m%d-%H%M%S')}"
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in label)
        for attempt in range(1, 100):  # two runs may start within one second
            path = Path("runs") / (name if attempt == 1 else f"{name}-{attempt}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            return RunFolder(path)
    except OSError as error:
        raise UsageError(
            f"cannot make the run folder {settings.out or 'runs/'}: {error.strerror}"
        ) from None
    raise UsageError(f"runs/{name} exists a hundred times over; give --out another folder")


def check_vacant(path: Path) -> None:
    """Raise UsageError if there is something at `path` that a new run would be mixed with."""
    try:
        vacant = not path.is_dir() or not any(path.iterdir())
    except OSError as error:
        raise UsageError(f"--out {path} cannot be looked into: {error.strerror}") from None
    if not vacant:
        raise UsageError(
            f"--out {path} is not empty. Give another folder, or go on with the run in it: "
            f"--resume {path}"
        )


def open_run_folder(path: Path) -> RunFolder:
    """The folder of an existing run.

    Raises:
        UsageError: there is no run at `path`.
    """
    folder = RunFolder(path)
    if not folder.settings.is_file():
        raise UsageError(
            f"{path} is not a run folder: it has no run.toml. Expected a folder that "
            "`convoy train` made, such as runs/NAME"
        )
    return folder


def read_settings(folder: RunFolder) -> TrainSettings:
    """The settings that a run was started with."""
    try:
        values = tomllib.loads(folder.settings.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{folder.settings} cannot be read: {error}") from None
    return settings_from(values, source=str(folder.settings))


def host_facts(settings: TrainSettings) -> dict[str, Any]:
    """What the machine that starts the run is, and which versions it uses."""
    packages = ("torch", "ray", "numpy", "safetensors")
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "seed": settings.seed,
        "versions": {"convoy": __version__, "python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
    }


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file of a run folder under a temporary name, then rename it.

    Raises:
        ConvoyError: it cannot be written (a full disk, say); what was there before still is.
    """
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise ConvoyError(
            f"cannot write {path}: {error.strerror}. Make room, then go on with "
            f"--resume {path.parent}"
        ) from None
