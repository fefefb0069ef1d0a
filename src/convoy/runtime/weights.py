"""What a training starts from in place of first weights: `--weights FILE.safetensors`."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from convoy.errors import UsageError
from convoy.runtime.settings import TrainSettings
from convoy.state import Tensors

_NAMED = 4
"""How many tensors an error names."""


def read_weights(settings: TrainSettings) -> Tensors | None:
    """The tensors that the run is to start from; None where it has first weights, or goes on.

    Raises:
        UsageError: the file is not there, or holds no tensors.
    """
    path = settings.weights
    if path is None or settings.resume is not None:
        return None
    if not path.is_file():
        raise UsageError(
            f"--weights {path}: no such file; expected tensors as a run leaves them in "
            "model.safetensors"
        )
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"--weights {path} cannot be read: {error}; expected a safetensors file, such as the "
            "model.safetensors of a finished run"
        ) from None


def put_weights(network: nn.Module, tensors: Tensors, path: Path | None) -> None:
    """Make `network` hold copies of `tensors`, exactly those.

    Args:
        path: where they come from, for errors.

    Raises:
        UsageError: they are not this network's.
    """
    ours = network.state_dict()
    wrong = [f"{name} is missing" for name in ours if name not in tensors]
    wrong += [f"{name} is not in the network" for name in tensors if name not in ours]
    wrong += [
        f"{name} is {_shape(tensors[name].shape)} and not {_shape(tensor.shape)}"
        for name, tensor in ours.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if wrong:
        more = f", and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise UsageError(
            f"--weights {path or ''} does not fit the network: {', '.join(wrong[:_NAMED])}{more}. "
            "Give the file of a network of the same --network and --data"
        )
    network.load_state_dict(tensors)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "one number"
