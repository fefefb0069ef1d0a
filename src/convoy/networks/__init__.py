"""Networks by name, each in a file of its own, with its source and its published size.

    build("lenet5", input_shape=(1, 28, 28), num_classes=10)
    build("marques:50:500", input_shape=(3, 32, 32), num_classes=10)
    build("mypackage.nets:make", input_shape=(3, 64, 64), num_classes=5)
    build("cifar10-full@pool2:8", input_shape=(3, 32, 32), num_classes=10)    # narrowed.py

All are plain torch modules that map images [N, C, H, W] to raw logits [N, num_classes], run on
empty batches, and trace with torch.fx. Their layers are modules with readable names (`conv1`,
`pool1`, ...), which is how cuts and plans refer to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from convoy.errors import UnknownNameError, UsageError
from convoy.networks import chavan, marques, narrowed
from convoy.networks.alexnet import alexnet
from convoy.networks.caffenet import caffenet
from convoy.networks.cifar10 import cifar10_full, cifar10_quick
from convoy.networks.expression import expression
from convoy.networks.googlenet import googlenet
from convoy.networks.imported import imported, made_by
from convoy.networks.lenet import lenet
from convoy.networks.lenet5 import lenet5
from convoy.networks.resnet import resnet18, resnet50, resnet152
from convoy.networks.spec import Builder, Shape, Spec
from convoy.networks.vgg import vgg16
from convoy.user_code import FORM as IMPORT_FORM
from convoy.user_code import is_import

__all__ = ["Shape", "build", "names", "narrow_weights", "published_for"]

_NETWORKS: dict[str, Builder] = {
    "lenet5": lenet5,
    "lenet": lenet,
    "cifar10-quick": cifar10_quick,
    "cifar10-full": cifar10_full,
    marques.FORM: marques.marques,
    chavan.FORM: chavan.chavan,
    "expression": expression,
    "caffenet": caffenet,
    "alexnet": alexnet,
    "googlenet": googlenet,
    "vgg16": vgg16,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "resnet152": resnet152,
}
"""What a user writes to what builds it. Behind a colon stand numbers for the user to fill in."""

_PARAMETRISED = {
    form.partition(":")[0]: builder for form, builder in _NETWORKS.items() if ":" in form
}


_PUBLISHED: dict[str, tuple[Shape, int]] = {
    "lenet5": ((1, 32, 32), 10),
    "lenet": ((1, 28, 28), 10),
    "cifar10-quick": ((3, 32, 32), 10),
    "cifar10-full": ((3, 32, 32), 10),
    "marques": ((3, 32, 32), 10),
    "expression": ((1, 48, 48), 7),
    "caffenet": ((3, 227, 227), 1000),
} | dict.fromkeys(
    ("alexnet", "googlenet", "vgg16", "resnet18", "resnet50", "resnet152"), ((3, 224, 224), 1000)
)


def published_for(name: str) -> tuple[Shape, int] | None:
    """The image shape and number of classes that a named network was published with.

    Raises:
        UnknownNameError: no network is called so.
    """
    narrowing = narrowed.parse(name)
    if narrowing is not None:
        return published_for(narrowing.network)
    _builder(name)
    return _PUBLISHED.get(name.partition(":")[0])


def names() -> list[str]:
    """The networks that have a name; parametrised ones as patterns, such as marques:K1:K2."""
    return list(_NETWORKS)


def build(
    name: str | Callable[..., nn.Module], *, input_shape: Shape, num_classes: int
) -> nn.Module:
    """A network with first weights, in training mode.

    `name` is one of `names()`, with numbers for a pattern's letters, or `package.module:function`
    for a function of the user's that returns a module, or that function itself. The function is
    given `input_shape` and `num_classes` if it has parameters of those names. Behind any name may
    stand @CUT:F, for fewer filters in the convolution before a layer: see `narrowed`.

    Weights are drawn from torch's current random state: seed it first. Under
    `torch.device("meta")` nothing is allocated, which is enough to count and to trace.

    Raises:
        UnknownNameError: no network is called so.
        UsageError: the name is malformed, the image too small for the architecture, the
            user's function is not there or not as expected, or filters cannot be fewer there.
    """
    narrowing = narrowed.parse(name) if isinstance(name, str) else None
    if narrowing is not None:
        full = build(narrowing.network, input_shape=input_shape, num_classes=num_classes)
        return narrowed.narrowed(full, narrowing, input_shape)
    label = name if isinstance(name, str) else getattr(name, "__name__", type(name).__name__)
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise UsageError(
            f"network {label!r}: input_shape is {tuple(input_shape)}; expected (channels, height, "
            "width), each at least 1"
        )
    if num_classes < 1:
        raise UsageError(f"network {label!r}: num_classes is {num_classes}; expected at least 1")
    channels, height, width = input_shape
    spec = Spec(name=label, input_shape=(channels, height, width), num_classes=num_classes)
    return _builder(name)(spec) if isinstance(name, str) else made_by(name, spec)


def narrow_weights(
    name: str, tensors: Mapping[str, Tensor], *, input_shape: Shape, num_classes: int
) -> dict[str, Tensor]:
    """The tensors of the trained full network as those of the narrowed one called `name`.

    Args:
        name: NAME@CUT:F.
        tensors: what the state_dict of the trained network NAME holds.

    Raises:
        UsageError: as `build`; or the tensors are not of that network.
    """
    narrowing = narrowed.parse(name)
    if narrowing is None:
        raise UsageError(f"network {name!r}: expected a narrowed one, {narrowed.FORM}")
    with torch.random.fork_rng(devices=[]):  # its first weights are nobody's concern
        full = build(narrowing.network, input_shape=input_shape, num_classes=num_classes)
    for dtype in {t.dtype for t in tensors.values() if t.is_floating_point()} - {torch.float32}:
        full = full.to(dtype)
    try:
        full.load_state_dict(tensors)
    except RuntimeError as error:
        raise UsageError(f"the tensors do not fit network {narrowing.network!r}: {error}") from None
    return narrowed.narrowed_as_trained(full, narrowing, input_shape).state_dict()


def _builder(name: str) -> Builder:
    parametrised = _PARAMETRISED.get(name.partition(":")[0])
    if parametrised is not None:
        return parametrised
    if name in _NETWORKS:
        return _NETWORKS[name]
    if is_import(name):
        return imported
    raise UnknownNameError("network", name, names(), f"Or {IMPORT_FORM}.")
