"""Facts about a network that planning needs, found without running it on data.

`layers_of` sends one image without content (torch's meta device) through the network, so that
shapes come out for skips, branches and whatever else a forward pass does, and nothing is
computed. A network that looks into its tensors cannot run so; it gets one image of zeros.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode

from convoy.cost.cuts import UNKNOWN, Cuts, cuts_of
from convoy.cost.tails import tails_of
from convoy.errors import UsageError

IMAGES = 2
"""How many images are sent through: batch normalisation has no variance of one."""


@dataclass(frozen=True, kw_only=True)
class LayerSize:
    """What of a leaf layer is exchanged or kept, in elements."""

    name: str
    parameters: tuple[int, ...] = ()
    """Of each trainable tensor that no earlier layer has, in the order in which a backward pass
    finishes their gradients."""
    batch_norm_channels: int = 0
    """Of a batch normalisation; 0 of anything else."""
    activations: int = 0
    """Of its outputs for one image."""
    inputs: int = 0
    """Of its inputs for one image."""
    macs: int = 0
    """Multiply-adds of its forward pass for one image."""
    filters: int = 0
    """Of a convolution that may be computed filter by filter: an nn.Conv2d without groups that a
    pass goes through once, with parameters of its own. 0 of anything else."""
    neurons: int = 0
    """Of a dense layer that may be computed neuron by neuron: an nn.Linear that a pass goes through
    once, with parameters of its own, all of them trained. 0 of anything else."""
    input_gradient: bool = False
    """Whether a backward pass goes on from it."""
    tail: tuple[str, ...] = ()
    """Of a convolution: the layers after it that act on each channel alone (`cost.tails`)."""


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """Sizes of a network's state, in elements."""

    num_parameters: int
    """Trainable parameters."""
    num_buffers: int
    """Floating-point buffers: running means and variances."""
    batch_norm_channels: tuple[int, ...] = ()
    """Channels of each batch normalisation, in module order."""
    layers: tuple[LayerSize, ...] = ()
    """In order of execution; () where nobody has looked how images go through."""
    cuts: Cuts = UNKNOWN
    """Where it can be cut in two."""
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Names and shapes of the trainable parameters, in module order."""


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """One leaf layer at one place of the forward pass; all counts are for one image."""

    name: str
    """Its module's qualified name; `name#2` where it is called a second time."""
    type: str
    """The module's class."""
    kernel: tuple[int, ...] | None
    """Of a convolution or pooling."""
    input: int
    """Elements of its inputs."""
    lowered: int | None
    """Of a convolution: elements of the input lowered to a matrix (im2col): one column of
    kernel x input channels for every output position."""
    weight: int
    """Elements of its weight; a bias is not among them."""
    output: int
    """Elements of its outputs."""
    macs: int
    """Multiply-adds of the forward pass: of convolutions and linear layers in closed form, of
    any other layer what torch's FlopCounterMode knows of it, halved."""
    backward_macs: int
    """Multiply-adds of the gradients of its weight, and of its input if anybody needs that."""
    parameter_bytes: int
    """Of all its parameters; 0 in a second call."""
    activation_bytes: int
    """Of its outputs, as they are kept for the backward pass."""
    output_shape: tuple[int, ...]
    """Of its first output, without the batch."""


def facts_of(network: nn.Module, input_shape: tuple[int, ...] | None = None) -> NetworkFacts:
    """Count `network`'s parameters and buffers; shared parameters count once.

    With an `input_shape` (channels, height, width) its layers are traced as well, for which
    `layers_of` says what may be wrong.
    """
    names = dict(leaves(network))
    return NetworkFacts(
        layers=_sizes(network, layers_of(network, input_shape)) if input_shape else (),
        cuts=cuts_of(network, names, input_shape) if input_shape else UNKNOWN,
        shapes=tuple((n, tuple(p.shape)) for n, p in network.named_parameters() if p.requires_grad),
        num_parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
        num_buffers=sum(b.numel() for b in network.buffers() if b.is_floating_point()),
        batch_norm_channels=tuple(
            m.num_features for m in network.modules() if isinstance(m, _BatchNorm)
        ),
    )


def layers_of(network: nn.Module, input_shape: tuple[int, ...]) -> tuple[LayerFacts, ...]:
    """The leaf layers that a forward pass of one image goes through, in order of execution.

    Args:
        network: any module; it is not changed.
        input_shape: of one image, as (channels, height, width).

    Raises:
        UsageError: images of this shape do not go through.
    """
    try:
        return _traced(copy.deepcopy(network).to("meta"), input_shape, "meta")
    except NotImplementedError:  # it looks into its tensors, or an operator knows no meta
        pass
    except RuntimeError as error:
        if "meta" not in str(error).lower():
            raise _does_not_fit(input_shape, error) from error
    try:
        return _traced(copy.deepcopy(network), input_shape, "cpu")
    except RuntimeError as error:
        raise _does_not_fit(input_shape, error) from error


def _sizes(network: nn.Module, found: Sequence[LayerFacts]) -> tuple[LayerSize, ...]:
    names = dict(leaves(network))
    modules = {name: module for module, name in names.items()}
    tails = tails_of(network, names)
    again = {facts.name.partition("#")[0] for facts in found if "#" in facts.name}
    owners = Counter(id(p) for module in modules.values() for p in module.parameters())
    left = {id(p): p.numel() for p in network.parameters() if p.requires_grad}
    sizes: list[LayerSize] = []
    for facts in found:
        name = facts.name.partition("#")[0]
        if name != facts.name:  # another call of a layer that stands here already
            continue
        module = modules[name]
        own = [left.pop(id(p)) for p in module.parameters() if id(p) in left]
        if isinstance(module, nn.Linear):  # its weight's gradient passes a transposition first
            own.reverse()
        shared = any(owners[id(p)] > 1 for p in module.parameters())
        norm = module.num_features if isinstance(module, _BatchNorm) else 0
        sizes.append(
            LayerSize(
                name=name,
                parameters=tuple(own),
                batch_norm_channels=norm,
                activations=facts.output,
                inputs=facts.input,
                macs=facts.macs,
                filters=0 if name in again or shared else _filters(module),
                neurons=0 if name in again or shared else _neurons(module),
                input_gradient=facts.backward_macs > facts.macs * _is_trained(module),
                tail=tails.get(name, ()),
            )
        )
    if left and sizes:  # parameters that no layer's pass has shown come last in a backward pass
        first = sizes[0]
        sizes[0] = replace(first, parameters=(*first.parameters, *left.values()))
    return tuple(sizes)


def _filters(module: nn.Module) -> int:
    return module.out_channels if type(module) is nn.Conv2d and module.groups == 1 else 0


def _neurons(module: nn.Module) -> int:
    if type(module) is not nn.Linear or module._forward_pre_hooks or any(module.buffers()):
        return 0  # a hook or buffer may make its weight of something else
    trained = all(p.requires_grad for p in module.parameters())
    return module.out_features if trained else 0


def _is_trained(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.requires_grad


def totals_of(layers: Iterable[LayerFacts]) -> dict[str, int]:
    """Sums over `layers`, for one image."""
    keys = ("weight", "macs", "backward_macs", "parameter_bytes", "activation_bytes")
    return {key: sum(getattr(layer, key) for layer in layers) for key in keys}


def fingerprint(layers: Iterable[LayerFacts]) -> str:
    """A short digest of layers' names, types and sizes: equal for networks of equal cost."""
    text = repr([(i.name, i.type, i.kernel, i.input, i.weight, i.output, i.macs) for i in layers])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _does_not_fit(input_shape: tuple[int, ...], error: Exception) -> UsageError:
    shape = "x".join(map(str, input_shape))
    return UsageError(f"images of {shape} do not go through this network: {error}")


def _traced(
    network: nn.Module, input_shape: tuple[int, ...], device: str
) -> tuple[LayerFacts, ...]:
    """Run `network` forward on `device` and note what each leaf does. `network` is spent."""
    names = dict(leaves(network))
    calls: dict[str, int] = {}
    found: list[LayerFacts] = []
    counted_before = 0
    counter = FlopCounterMode(display=False)

    def begin(*_: Any) -> None:
        nonlocal counted_before
        counted_before = counter.get_total_flops()

    def end(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        name = names[layer]
        calls[name] = calls.get(name, 0) + 1
        counted = (counter.get_total_flops() - counted_before) // (2 * IMAGES)
        inputs, outputs = _tensors((args, kwargs)), _tensors(output)
        found.append(_facts(name, calls[name], layer, inputs, outputs, counted))

    for leaf in names:
        leaf.register_forward_pre_hook(begin)
        leaf.register_forward_hook(end, with_kwargs=True)
    image = torch.zeros((IMAGES, *input_shape), device=device, dtype=_dtype(network))
    with torch.random.fork_rng(devices=[]), counter:
        network.train()(image)
    return tuple(found)


def leaves(module: nn.Module, name: str = "") -> Iterator[tuple[nn.Module, str]]:
    """Modules without children, and those with parameters of their own, which count as one."""
    children = list(module.named_children())
    if not children or next(module.parameters(recurse=False), None) is not None:
        yield module, name or "network"
        return
    for child_name, child in children:
        yield from leaves(child, f"{name}.{child_name}" if name else child_name)


def _facts(
    name: str,
    call: int,
    layer: nn.Module,
    inputs: list[Tensor],
    outputs: list[Tensor],
    counted_macs: int,
) -> LayerFacts:
    weight = getattr(layer, "weight", None)
    kernel = getattr(layer, "kernel_size", None)
    output = sum(map(_per_image, outputs))
    lowered, macs = None, counted_macs  # of layers that the user wrote
    if isinstance(layer, _ConvTransposeNd):  # a convolution's input gradient, played forward
        macs = sum(map(_per_image, inputs)) * layer.weight[0].numel()
    elif isinstance(layer, _ConvNd):
        positions = _per_image(outputs[0]) // layer.out_channels
        lowered = positions * layer.in_channels * math.prod(layer.kernel_size)
        macs = _per_image(outputs[0]) * layer.weight[0].numel()
    elif isinstance(layer, nn.Linear):
        macs = _per_image(outputs[0]) * layer.in_features
    sides = [i.requires_grad for i in inputs[:1]]
    sides += [weight.requires_grad] if isinstance(weight, Tensor) else []
    first = call == 1
    return LayerFacts(
        name=name if first else f"{name}#{call}",
        type=type(layer).__name__,
        kernel=_kernel(kernel, outputs),
        input=sum(map(_per_image, inputs)),
        lowered=lowered,
        weight=weight.numel() if isinstance(weight, Tensor) else 0,
        output=output,
        macs=macs,
        backward_macs=macs * sum(sides),
        parameter_bytes=sum(p.nbytes for p in layer.parameters()) if first else 0,
        activation_bytes=sum(t.nbytes for t in outputs) // IMAGES,
        output_shape=tuple(outputs[0].shape[1:]) if outputs else (),
    )


def _kernel(size: Any, outputs: list[Tensor]) -> tuple[int, ...] | None:
    if isinstance(size, int):  # pooling takes one number for a square
        return (size,) * (outputs[0].dim() - 2)
    return tuple(size) if isinstance(size, tuple | list) else None


def _per_image(tensor: Tensor) -> int:
    return tensor.numel() // IMAGES


def _dtype(network: nn.Module) -> torch.dtype:
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in nested containers."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return []
