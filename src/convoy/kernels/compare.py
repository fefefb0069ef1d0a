"""Dense and convolution layers, and small networks, over image sizes: what each takes, by torch.

    layers      dense: all of an image to UNITS neurons; conv: FILTERS filters of KERNEL x KERNEL
    networks    a forward and a backward pass, as training makes them

Source: Chavan & Kulkarni (`gpu/kernels.py`), who compare them over image sizes on a CPU and a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convoy.errors import UnknownNameError
from convoy.kernels.timing import in_turns, torch_threads

KINDS = ("dense", "conv")
UNITS, FILTERS, KERNEL = 100, 50, 5


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One layer or network, for images of one size, on one device."""

    what: str
    image_size: int
    device: str
    threads: int
    forward_s: float
    backward_s: float
    """Of the gradients of weights and input; the median of turns, as forward."""

    def to_dict(self) -> dict[str, Any]:
        """As `convoy conv bench --json` prints it."""
        return asdict(self)


def layer(kind: str, channels: int, size: int) -> nn.Module:
    """A layer for images of `channels` x `size` x `size`. Raises UnknownNameError: of no KINDS."""
    if kind == "dense":
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, UNITS))
    if kind == "conv":
        return nn.Conv2d(channels, FILTERS, KERNEL, padding=KERNEL // 2)
    raise UnknownNameError("layer to compare", kind, KINDS)


def compare(
    build: Callable[[str, int], nn.Module],
    names: Sequence[str],
    sizes: Sequence[int],
    *,
    channels: int,
    images: int,
    threads: Sequence[int],
    devices: Sequence[str],
    enough_s: float = 0.3,
    say: Callable[[str], Any] = lambda _text: None,
) -> list[Compared]:
    """Time each by itself; those of one size take turns.

    Args:
        build: of a name and an image size the module.
        names: layers or networks.
        sizes: of square images.
        channels: of an image.
        images: of a pass.
        threads: numbers of them to try on a CPU.
        devices: "cpu", "cuda:0".
        enough_s: of turns of each.
        say: told what is timed.
    """
    found = []
    for device in devices:
        for number in threads if device == "cpu" else (1,):
            with torch_threads(number):
                for size in sizes:
                    say(f"images of {size}x{size} on {device}, {number} thread{'s' * (number > 1)}")
                    modules = {name: build(name, size).to(device) for name in names}
                    inputs = torch.randn(images, channels, size, size, device=device)
                    rows = _timed(modules, inputs, enough_s)
                    found += [
                        Compared(
                            what=name,
                            image_size=size,
                            device=device,
                            threads=number,
                            forward_s=forward_s,
                            backward_s=backward_s,
                        )
                        for name, (forward_s, backward_s) in rows.items()
                    ]
    return found


def _timed(
    modules: Mapping[str, nn.Module], inputs: Tensor, enough_s: float
) -> dict[str, tuple[float, float]]:
    works: dict[str, Callable[[], Any]] = {}
    for name, module in modules.items():
        given = inputs.detach().requires_grad_()
        output = module(given)
        gradient = torch.randn_like(output)

        def forward(module: nn.Module = module, given: Tensor = given) -> None:
            with torch.no_grad():
                module(given)
            _finish(given)

        def backward(output: Tensor = output, gradient: Tensor = gradient) -> None:
            output.backward(gradient, retain_graph=True)
            _finish(output)

        works[f"{name} forward"], works[f"{name} backward"] = forward, backward
    seconds = in_turns(works, enough_s)
    return {name: (seconds[f"{name} forward"], seconds[f"{name} backward"]) for name in modules}


def _finish(tensor: Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
