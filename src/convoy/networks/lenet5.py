"""LeNet-5 of 1998: 60,000 trainable parameters up to F6, and a dense layer.

    layer    C1   S2     C3   S4      C5      F6
    count   156   12  1,516   32  48,120  10,164      for 1x32x32

Source: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to
document recognition", Proceedings of the IEEE 86 (11), 1998, section II.B, table I, appendix A.

One part is replaced: the output layer of Euclidean radial basis functions with fixed 7x12
bitmaps of characters, which say nothing about other classes than digits. A dense layer of 84 to the
classes stands there, so that the network puts out logits as all others do.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convoy.networks.layers import in_a_row
from convoy.networks.spec import Spec

FIELD = 32
"""The side of the field that images stand in the middle of, so that a stroke at a 28x28 image's
edge, too, comes to lie in the middle of some unit's view."""

C3_TABLE: tuple[tuple[int, ...], ...] = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)
"""Which of S2's six maps each of C3's sixteen sees (table I)."""


class ScaledTanh(nn.Module):
    """1.7159 tanh(2/3 x), which maps +1 and -1 to themselves (appendix A). Any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(2 / 3 * x)


class Subsampling(nn.Module):
    """Each map's 2x2 sums, times one trainable coefficient, plus one trainable bias.

    [N, C, H, W] to [N, C, H // 2, W // 2]. Source: layers S2 and S4 of section II.B.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.sum = nn.AvgPool2d(2, divisor_override=1)
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = self.sum(x)
        return summed * self.weight[:, None, None] + self.bias[:, None, None]


class TableConv2d(nn.Module):
    """A convolution in which each output map sees only the input maps that a table gives it.

    [N, C, H, W] to [N, len(table), H - kernel + 1, W - kernel + 1]. `weight` holds the kernels
    of the connections that exist, [connections, kernel, kernel], by output map, then input map.
    The forward pass lays them out densely, zeros between, since one dense convolution is faster
    than sixteen small ones. Which kernel goes where is in two buffers that no state_dict holds:
    a network built on "meta" cannot be brought to life by to_empty().
    """

    outputs: Tensor
    inputs: Tensor

    def __init__(self, table: Sequence[Sequence[int]], kernel: int) -> None:
        super().__init__()
        self.table = tuple(map(tuple, table))
        self.in_channels, self.out_channels = 1 + max(map(max, table)), len(table)
        self.kernel_size = (kernel, kernel)
        pairs = torch.tensor([(o, i) for o, row in enumerate(table) for i in row])
        self.register_buffer("outputs", pairs[:, 0].clone(), persistent=False)
        self.register_buffer("inputs", pairs[:, 1].clone(), persistent=False)
        self.weight = nn.Parameter(torch.empty(len(pairs), kernel, kernel))
        self.bias = nn.Parameter(torch.empty(len(table)))

    def forward(self, x: Tensor) -> Tensor:
        zeros = self.weight.new_zeros(self.out_channels, self.in_channels, *self.kernel_size)
        return F.conv2d(x, zeros.index_put((self.outputs, self.inputs), self.weight), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"


def lenet5(spec: Spec) -> nn.Module:
    """Layers under the paper's names; every one up to F6 is squashed.

    Images of less than 32 on a side are padded to it with zeros, the mean pixel. For larger
    ones C5's kernels grow with S4's maps, so that C5 always is 120 single units.
    """
    height, width = spec.sides
    layers: dict[str, nn.Module] = {
        "c1": nn.Conv2d(spec.channels, 6, 5),
        "squash1": ScaledTanh(),
        "s2": Subsampling(6),
        "squash2": ScaledTanh(),
        "c3": TableConv2d(C3_TABLE, 5),
        "squash3": ScaledTanh(),
        "s4": Subsampling(16),
        "squash4": ScaledTanh(),
        "c5": nn.Conv2d(16, 120, (_side_after_s4(height), _side_after_s4(width))),
        "squash5": ScaledTanh(),
        "flatten": nn.Flatten(),
        "f6": nn.Linear(120, 84),
        "squash6": ScaledTanh(),
        "output": nn.Linear(84, spec.num_classes),
    }
    if min(height, width) < FIELD:
        layers = {"pad": nn.ZeroPad2d((*_padding(width), *_padding(height))), **layers}
    network = in_a_row(layers)
    _initialise(network)
    return network


def _padding(side: int) -> tuple[int, int]:
    """Zeros before and after, which put `side` pixels in the middle of the field."""
    missing = max(0, FIELD - side)
    return missing // 2, missing - missing // 2


def _side_after_s4(side: int) -> int:
    return ((max(FIELD, side) - 4) // 2 - 4) // 2


def _initialise(network: nn.Module) -> None:
    """Uniform weights of variance 1 / fan-in, biases 0.

    Source: LeCun, Bottou, Orr & Müller, "Efficient BackProp", 1998, section 4.6, made for this
    tanh. The paper on LeNet-5 has +-2.4 / fan-in (appendix A) together with a learning rate per
    weight from second derivatives; with one rate for all, training then stands still at first.
    """
    for layer in network.modules():
        if isinstance(layer, TableConv2d):
            # C3's units differ in their fan-in. Views of a parameter may be filled without grad.
            with torch.no_grad():
                for kernels in torch.split(layer.weight, [len(row) for row in layer.table]):
                    _fill(kernels, kernels.numel())
        elif isinstance(layer, Subsampling):
            _fill(layer.weight, 4)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            _fill(layer.weight, layer.weight[0].numel())
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _fill(weight: Tensor, fan_in: int) -> None:
    bound = sqrt(3 / fan_in)
    nn.init.uniform_(weight, -bound, bound)
