"""Which algorithm a model's convolution layers use: changed in place, and back.

A layer that is changed stays the object it was, with its parameters, hooks and names; its class is
`ChosenConv2d`, which is a Conv2d with an `algorithm`. What is not exactly a torch.nn.Conv2d, or
pads with anything but zeros, keeps torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from convoy.errors import UnknownNameError, UsageError
from convoy.kernels.geometry import Geometry, geometry_of
from convoy.kernels.operation import DTYPES, convolve, is_last
from convoy.kernels.passes import AUTO, CHOICES, TORCH, by_pass
from convoy.kernels.tuner import Where, hardware_of, kept_here, tuned


class ChosenConv2d(nn.Conv2d):
    """A convolution by an algorithm of ours."""

    algorithm: str

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.dim() == 3:
            return self._conv_forward(input[None], weight, bias)[0]
        return convolve(
            input,
            weight,
            bias,
            self.stride,
            paddings(self),
            self.dilation,
            self.groups,
            algorithm=self.algorithm,
        )

    def extra_repr(self) -> str:
        """As torch's, with the algorithm."""
        plain: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{plain}, algorithm={self.algorithm}"


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The layers whose algorithm can be chosen, by name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) in (nn.Conv2d, ChosenConv2d) and can_be_chosen(layer)
    }


def can_be_chosen(layer: Any) -> bool:
    """Whether a layer pads with zeros, and as much on either side."""
    if layer.padding_mode != "zeros":
        return False
    if layer.padding != "same":
        return True
    spans = zip(layer.dilation, layer.kernel_size, strict=True)
    return all(dilation * (size - 1) % 2 == 0 for dilation, size in spans)


def paddings(layer: nn.Conv2d) -> tuple[int, int]:
    """A layer's, as numbers."""
    if layer.padding == "valid":
        return 0, 0
    if layer.padding == "same":
        y, x = (d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        return y, x
    assert not isinstance(layer.padding, str)
    return layer.padding[0], layer.padding[1]


def use_algorithm(
    model: nn.Module, algorithm: str | Mapping[str, str], inputs: Tensor | None = None
) -> nn.Module:
    """Have a model's convolutions computed by an algorithm, from now on.

        use_algorithm(model, "pipelined")
        use_algorithm(model, {"features.0": "lowering", "features.3": "torch"})
        use_algorithm(model, "auto", images)  # each layer the fastest, for such images
        use_algorithm(model, "torch")  # as it was

    Args:
        model: any; it is changed in place.
        algorithm: `torch`, `direct`, `lowering` or `pipelined` for all layers that can be chosen,
            or three with / between them, one for each pass (`passes.py`); or by layer, where those
            that are not named stay as they are. `auto`: whichever is fastest here, timed once and
            kept, which takes seconds; for the memory layout that the first convolution has.
        inputs: [images, channels, height, width], on the model's device; with `auto` only, as many
            as the model will compute at a time.

    Returns:
        The model.

    Raises:
        UnknownNameError: no such algorithm, or no such layer.
        UsageError: a layer that was named cannot be chosen; `auto` without inputs, or with a dtype
            that is not float32 or float64.
    """
    found = convolutions(model)
    if algorithm == AUTO:
        algorithm = _fastest(model, found, inputs)
    if isinstance(algorithm, str):
        if "/" not in algorithm and algorithm not in CHOICES:
            raise UnknownNameError("convolution algorithm", algorithm, (AUTO, *CHOICES))
        algorithm = dict.fromkeys(found, algorithm)
    for name, chosen in algorithm.items():
        by_pass(chosen)
        if name not in found:
            if name in dict(model.named_modules()):
                raise UsageError(
                    f"layer {name!r} keeps torch's own algorithm: it is no torch.nn.Conv2d that "
                    "pads with zeros, as much on either side"
                )
            raise UnknownNameError("convolution layer", name, found)
    for name, chosen in algorithm.items():
        layer = found[name]
        if set(by_pass(chosen)) == {TORCH}:
            layer.__class__ = nn.Conv2d
            vars(layer).pop("algorithm", None)
        else:
            layer.__class__ = ChosenConv2d
            layer.algorithm = chosen  # type: ignore[assignment]
    return model


def _fastest(
    model: nn.Module, layers: Mapping[str, nn.Conv2d], inputs: Tensor | None
) -> dict[str, str]:
    if inputs is None:
        raise UsageError(
            "use_algorithm(model, 'auto') times layers at their real shapes: give it images, as "
            "use_algorithm(model, 'auto', images)"
        )
    if not layers:
        return {}
    weight = next(iter(layers.values())).weight
    if weight.dtype not in DTYPES:
        raise UsageError(f"auto: the weights are {weight.dtype}; expected float32 or float64")
    if inputs.dtype != weight.dtype:
        raise UsageError(f"auto: images of {inputs.dtype}; expected the weights', {weight.dtype}")
    where = Where(
        hardware=hardware_of(weight.device),
        num_threads=torch.get_num_threads(),
        dtype=weight.dtype,
        last=is_last(weight),
        device=str(weight.device),
    )
    first = first_layers(model, inputs[:1])
    found = tuned(geometries(model, inputs), where, kept_here(), first=first)
    return {name: str(choice) for name, choice in found.items()}


def geometries(model: nn.Module, inputs: Tensor) -> dict[str, Geometry]:
    """What each layer whose algorithm can be chosen computes when `inputs` go through.

    A layer that is called more than once has the geometry of its first call. The model is as it
    was afterwards, and no gradients are kept.

    Args:
        model: any.
        inputs: [images, channels, height, width], on the model's device.
    """
    found: dict[str, Geometry] = {}

    def note(name: str, layer: nn.Conv2d, given: Tensor) -> None:
        shape = given.shape if given.dim() == 4 else (1, *given.shape)
        found.setdefault(name, geometry_of_layer(layer, shape))

    with torch.no_grad():
        _watch(model, inputs, note)
    return found


def first_layers(model: nn.Module, inputs: Tensor) -> set[str]:
    """Of the layers that `geometries` finds, those whose input needs no gradient when it trains."""
    found: set[str] = set()

    def note(name: str, _layer: nn.Conv2d, given: Tensor) -> None:
        if not given.requires_grad:
            found.add(name)

    with torch.enable_grad():
        _watch(model, inputs, note)
    return found


def rng_restored(device: torch.device) -> AbstractContextManager[None]:
    """Random numbers that are drawn within, on a CPU or on `device`, do not count."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _watch(
    model: nn.Module, inputs: Tensor, note: Callable[[str, nn.Conv2d, Tensor], None]
) -> None:
    """Let inputs go through; what each convolution gets is noted."""
    handles = [
        layer.register_forward_pre_hook(
            lambda layer, given, named, name=name: note(name, layer, (*given, *named.values())[0]),
            with_kwargs=True,
        )
        for name, layer in convolutions(model).items()
    ]
    modes = {module: module.training for module in model.modules()}
    try:
        with rng_restored(inputs.device):
            model.eval()(inputs)
    finally:
        for module, training in modes.items():
            module.training = training
        for handle in handles:
            handle.remove()


def geometry_of_layer(layer: Any, input_shape: Sequence[int]) -> Geometry:
    """A layer's convolution of an input. Raises UsageError where they do not fit."""
    return geometry_of(
        input_shape, layer.weight.shape, layer.stride, paddings(layer), layer.dilation, layer.groups
    )
