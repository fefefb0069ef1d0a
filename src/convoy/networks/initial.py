"""First weights. They come from torch's current random state; whoever builds seeds it.

The networks from Caffe were published with gaussians of fixed width (0.0001, 0.01, 0.1;
biases up to 1), chosen for pixels of 0..255 less their mean. Convoy's pixels are normalised
to about unit variance, some 60 times smaller, and with those widths signal and gradient
would all but vanish. So every rectifier network here starts as He et al. derived, which
keeps a unit variance through the layers; architectures are as published.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn


def he_normal(network: nn.Module, *, last: str, linear: Collection[str] = ()) -> nn.Module:
    """Normal weights of variance 2 / fan-in, biases 0; returns `network`.

    `linear` names layers whose output no rectifier halves: 1 / fan-in. The `last` layer gets a
    deviation of 0.01, as Krizhevsky et al. (2012) gave it: logits start near 0 and the loss near
    ln(classes), which lets cifar10-quick learn at three times the rate.

    Source: He, Zhang, Ren & Sun, "Delving deep into rectifiers", ICCV 2015, section 2.2.
    """
    layers = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }
    assert {last, *linear} <= set(layers)
    for name, layer in layers.items():
        if name == last:
            nn.init.normal_(layer.weight, std=0.01)
        else:
            nn.init.kaiming_normal_(
                layer.weight, nonlinearity="linear" if name in linear else "relu"
            )
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return network


def caffe_xavier(network: nn.Module) -> nn.Module:
    """Uniform weights of variance 1 / fan-in, biases 0; returns `network`.

    Source: Caffe's "xavier" filler (include/caffe/filler.hpp), which looks at the fan-in alone.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network
