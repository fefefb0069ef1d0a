"""Whose maps reach which layer of a network.

One batch without content goes through, and every tensor on the way carries the names of the
layers that made its channels:

    image ──▶ conv1 ──▶ relu1 ──▶ pool1 ──▶ conv2 ──▶ flatten ──▶ ip1
     {image}   {conv1}   {conv1}   {conv1}   {conv2}   {conv2}     {ip1}

A convolution and a dense layer make new channels. Whatever treats each channel by itself, a
depthwise convolution included, hands on those it is given. A sum or a concatenation has the
names of all that meet in it, and the channels of none of them can be changed alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from convoy.errors import UsageError
from convoy.networks.spec import Shape

IMAGE = "the image"
"""The name of what no layer has made."""
IMAGES = 2
"""How many go through: some code squeezes a batch of one away."""

_BY_CHANNEL = (_NormBase, nn.GroupNorm, nn.PReLU)
"""Layers that treat each channel by itself, with weights or statistics for each."""


@dataclass(kw_only=True)
class Maps:
    """What came out."""

    makers: dict[str, frozenset[str]] = field(default_factory=dict)
    """By module that was called: whose channels it puts out, over all its calls."""
    calls: Counter[str] = field(default_factory=Counter)
    """How often each module was called."""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Of what each module puts out for one image."""
    takers: dict[str, set[str]] = field(default_factory=dict)
    """By layer that has weights for the channels it is given: who made them."""
    obstacles: dict[str, str] = field(default_factory=dict)
    """By maker: why the number of its channels cannot be changed, in words."""

    def takers_of(self, maker: str) -> list[str]:
        """The layers that have weights for `maker`'s channels."""
        return [name for name, makers in self.takers.items() if maker in makers]


def is_depthwise(layer: nn.Module) -> bool:
    """Whether it is a convolution that makes one map of each map."""
    return isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels == (
        layer.out_channels
    )


def channels_made(layer: nn.Module | None) -> int | None:
    """How many channels a layer makes; None of one that makes none, or in a way not known here."""
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels
    return layer.out_features if isinstance(layer, nn.Linear) else None


def maps_of(network: nn.Module, input_shape: Shape) -> Maps:
    """Follow the channels through one forward pass; the network stays as it is.

    The pass has shapes alone (torch's meta device). A network that looks into its tensors gets
    zeros instead.

    Raises:
        UsageError: images of this shape do not go through.
    """
    own = dict(network.named_parameters()) | dict(network.named_buffers())
    bare = {name: torch.empty_like(tensor, device="meta") for name, tensor in own.items()}
    try:
        return _followed(network, bare, input_shape)
    except Exception:  # whatever the user's code does when it gets no values
        return _followed_with_values(network, own, input_shape)


def _followed_with_values(
    network: nn.Module, own: Mapping[str, Tensor], input_shape: Shape
) -> Maps:
    try:
        return _followed(network, own, input_shape)
    except Exception as error:  # the user's own code
        shape = "x".join(map(str, input_shape))
        raise UsageError(
            f"an image of {shape} does not go through the network: {type(error).__name__}: {error}"
        ) from error


def _followed(network: nn.Module, own: Mapping[str, Tensor], input_shape: Shape) -> Maps:
    floating = [tensor for tensor in own.values() if tensor.is_floating_point()]
    like = floating[0] if floating else torch.empty(0)
    images = like.new_zeros(IMAGES, *input_shape)
    follower = _Follower(network, own.values())
    follower.label(images, frozenset({IMAGE}))
    with ExitStack() as stack:
        stack.enter_context(_judging(network))
        for name, module in network.named_modules():
            for handle in follower.watch(name, module):
                stack.callback(handle.remove)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.no_grad())
        stack.enter_context(follower)
        torch.func.functional_call(network, dict(own), (images,))
    return follower.settled()


@contextmanager
def _judging(network: nn.Module) -> Iterator[None]:
    """Within it every layer is as for evaluation; afterwards as it was."""
    before = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


class _Follower(TorchFunctionMode):
    """Sees every function that a forward pass calls, and labels what comes out."""

    def __init__(self, network: nn.Module, own: Iterable[Tensor]) -> None:
        super().__init__()
        self.maps = Maps()
        self._layers = dict(network.named_modules())
        self._own = {id(tensor): tensor for tensor in own if tensor.numel() > 1}
        self._labels: dict[int, tuple[Tensor, frozenset[str]]] = {}  # the tensor keeps its id
        self._inside: list[str] = []

    def label(self, tensor: Tensor, makers: frozenset[str]) -> None:
        """Say who made a tensor's channels."""
        self._labels[id(tensor)] = (tensor, makers)

    def watch(self, name: str, module: nn.Module) -> Iterator[Any]:
        """Hooks around a module, to be removed."""
        yield module.register_forward_pre_hook(
            lambda m, args, kwargs: self._enter(name, m, [*args, *kwargs.values()]),
            with_kwargs=True,
        )
        yield module.register_forward_hook(lambda m, _, out: self._leave(name, m, out))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = list(_tensors([*args, *kwargs.values()]))
        makers = self._makers(given)
        where = self._inside[-1] if self._inside else ""
        if makers and not _is_known(self._layers[where]):
            made = [tensor for tensor in _tensors([out]) if tensor.dim()]  # one number is of none
            for tensor in made:
                self.label(tensor, makers)
            if made:
                self._judge(func, given, made, makers, where)
        return out

    def settled(self) -> Maps:
        """What there is to know once the pass is over."""
        maps = self.maps
        for name, makers in maps.takers.items():
            if len(makers) > 1:
                self._bar(makers, f"{name} is used for the maps of several layers")
        holders = Counter(
            id(parameter)
            for module in self._layers.values()
            for parameter in module.parameters(recurse=False)
        )
        for name, layer in self._layers.items():
            if any(holders[id(parameter)] > 1 for parameter in layer.parameters(recurse=False)):
                self._bar({name, *maps.takers.get(name, ())}, f"{name} shares its weights")
        return maps

    def _enter(self, name: str, module: nn.Module, arguments: list[Any]) -> None:
        self._inside.append(name)
        given = list(_tensors(arguments))
        makers = self._makers(given)
        if _is_known(module):
            if not isinstance(module, nn.PReLU) or module.num_parameters > 1:
                self.maps.takers.setdefault(name, set()).update(makers)
            if isinstance(module, nn.Linear) and given[0].dim() != 2:
                self._bar(makers, f"{name} looks along rows of maps, not at channels")
        elif _has_weights(module):
            self._bar(
                makers,
                f"{name or 'the network'} ({type(module).__name__}) has weights of its own for "
                "them, and is no layer of a kind that is known here",
            )

    def _leave(self, name: str, module: nn.Module, out: Any) -> None:
        self._inside.pop()
        made = list(_tensors([out]))
        given = self._makers(made)
        if channels_made(module) is not None and not is_depthwise(module):
            given = frozenset({name})
        elif _is_known(module):
            given = frozenset(self.maps.takers.get(name, ())) or given
        elif _has_weights(module):
            given = frozenset({name})
        for tensor in made:
            self.label(tensor, given)
        self.maps.makers[name] = self.maps.makers.get(name, frozenset()) | given
        self.maps.calls[name] += 1
        if made:
            self.maps.shapes[name] = tuple(made[0].shape[1:])

    def _judge(
        self,
        func: Callable[..., Any],
        given: list[Tensor],
        made: list[Tensor],
        makers: frozenset[str],
        where: str,
    ) -> None:
        """Note what a function that is no layer does to channels besides treating each alone."""
        place = where or "the network"
        if len(makers) > 1:
            for maker in makers:
                others = ", ".join(sorted(makers - {maker}))
                self._bar({maker}, f"they meet those of {others} in {place}")
            return
        if any(id(tensor) in self._own for tensor in given):
            self._bar(makers, f"{place} has weights of its own for them")
        channels = channels_made(self._layers.get(next(iter(makers))))
        taken = [tensor for tensor in given if id(tensor) in self._labels]
        for tensor in made:
            by_channel = tensor.dim() > 1 and tensor.shape[1] == channels
            flattened = (
                tensor.dim() == 2
                and len(taken) == 1
                and taken[0].dim() > 2
                and taken[0].numel() == tensor.numel()
                and taken[0].shape[:2] == (tensor.shape[0], channels)
            )
            if not by_channel and not flattened:
                name = getattr(func, "__name__", "a function")
                self._bar(makers, f"{name} in {place} does not keep them apart")

    def _makers(self, tensors: Iterable[Tensor]) -> frozenset[str]:
        found = [self._labels[id(tensor)][1] for tensor in tensors if id(tensor) in self._labels]
        return frozenset().union(*found)

    def _bar(self, makers: Iterable[str], why: str) -> None:
        for maker in makers:
            self.maps.obstacles.setdefault(maker, why)


def _is_known(module: nn.Module) -> bool:
    """Whether the layer's weights can be cut to other channels."""
    kinds = (nn.Conv2d, nn.Linear, *_BY_CHANNEL)
    # Of a weight that is computed (torch's parametrizations) the sources would have to be cut.
    return isinstance(module, kinds) and ("weight" in module._parameters)


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
