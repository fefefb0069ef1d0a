"""Layers that torch does not have, against loops written from their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from convoy.networks.layers import WithinChannelNorm, caffe_average_pool, caffe_max_pool
from convoy.networks.lenet5 import C3_TABLE, ScaledTanh, Subsampling, TableConv2d


def image(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def caffe_pooled_side(side: int, kernel: int, stride: int) -> int:
    """Caffe, pooling_layer.cpp, without padding."""
    return math.ceil((side - kernel) / stride) + 1


def pool_by_hand(x: Tensor, kernel: int, stride: int, *, mean: bool) -> Tensor:
    """[C, H, W] window by window; a window that overhangs is cut off at the edge."""
    _, height, width = x.shape
    rows = []
    for i in range(caffe_pooled_side(height, kernel, stride)):
        row = []
        for j in range(caffe_pooled_side(width, kernel, stride)):
            top, left = i * stride, j * stride
            window = x[:, top : min(top + kernel, height), left : min(left + kernel, width)]
            row.append(window.mean((1, 2)) if mean else window.amax((1, 2)))
        rows.append(torch.stack(row, dim=1))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2)])
@pytest.mark.parametrize("side", [2, 3, 4, 7, 8, 15, 16])
def test_pooling_is_caffes(side: int, kernel: int, stride: int) -> None:
    x = image(2, side, side + 1)
    for pool, mean in ((caffe_max_pool, False), (caffe_average_pool, True)):
        pooled = pool(kernel, stride)(x[None])[0]
        assert pooled.shape[1] == caffe_pooled_side(side, kernel, stride)
        torch.testing.assert_close(pooled, pool_by_hand(x, kernel, stride, mean=mean))


@pytest.mark.parametrize("size", [3, 5])
def test_within_channel_norm_is_caffes(size: int) -> None:
    # A large alpha, since with the published 5e-5 a wrong one would hardly show.
    alpha, beta, reach = 0.9, 0.75, size // 2
    x = image(2, 3, 5, 7)
    expected = torch.empty_like(x)
    for n, c, i, j in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        total = 0.0
        for k in range(max(0, i - reach), min(5, i + reach + 1)):
            for m in range(max(0, j - reach), min(7, j + reach + 1)):
                total += x[n, c, k, m].item() ** 2
        expected[n, c, i, j] = x[n, c, i, j] * (1 + alpha * total / size**2) ** -beta
    torch.testing.assert_close(WithinChannelNorm(size, alpha=alpha, beta=beta)(x), expected)


def test_within_channel_norm_passes_gradients() -> None:
    x = image(1, 2, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(WithinChannelNorm(3, alpha=0.9, beta=0.75), (x,))


def test_scaled_tanh_keeps_plus_and_minus_one() -> None:
    """Appendix A of LeCun et al. 1998: f(1) = 1 and f(-1) = -1, saturating at 1.7159."""
    y = ScaledTanh()(torch.tensor([-1e3, -1.0, 0.0, 1.0, 1e3]))
    torch.testing.assert_close(
        y, torch.tensor([-1.7159, -1.0, 0.0, 1.0, 1.7159]), atol=1e-4, rtol=0
    )


def test_subsampling_adds_scales_and_shifts() -> None:
    layer = Subsampling(3).double()
    with torch.no_grad():
        layer.weight.copy_(image(3, seed=1))
        layer.bias.copy_(image(3, seed=2))
    x = image(2, 3, 5, 4)
    y = layer(x)
    assert y.shape == (2, 3, 2, 2)
    for c in range(3):
        total = x[1, c, 2:4, 0:2].sum()
        torch.testing.assert_close(y[1, c, 1, 0], total * layer.weight[c] + layer.bias[c])


def test_the_connection_table_is_table_one() -> None:
    """Six maps see 3 neighbours, six see 4, three see 4 apart, one sees all (60 connections)."""
    assert [len(row) for row in C3_TABLE] == [3] * 6 + [4] * 9 + [6]
    assert len(set(C3_TABLE)) == 16
    for first in range(6):
        assert set(C3_TABLE[first]) == {(first + k) % 6 for k in range(3)}
        assert set(C3_TABLE[6 + first]) == {(first + k) % 6 for k in range(4)}
    assert C3_TABLE[12:15] == ((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5))
    # Every map of S2 is seen by ten of C3's.
    assert [sum(i in row for row in C3_TABLE) for i in range(6)] == [10] * 6


def test_table_convolution_is_one_convolution_per_map() -> None:
    layer = TableConv2d(C3_TABLE, 5).double()
    with torch.no_grad():
        layer.weight.copy_(image(60, 5, 5, seed=1))
        layer.bias.copy_(image(16, seed=2))
    x = image(2, 6, 9, 8)
    y = layer(x)
    assert y.shape == (2, 16, 5, 4)
    start = 0
    for o, row in enumerate(C3_TABLE):
        kernels = layer.weight[start : start + len(row)]
        start += len(row)
        expected = F.conv2d(x[:, list(row)], kernels[None], layer.bias[o : o + 1])
        torch.testing.assert_close(y[:, o : o + 1], expected)


def test_table_convolution_follows_its_device_and_type() -> None:
    layer = TableConv2d(C3_TABLE, 5)
    assert layer.to(torch.bfloat16).outputs.dtype == torch.int64
    assert layer.to("meta")(torch.empty(0, 6, 5, 5, device="meta", dtype=torch.bfloat16)).is_meta
    assert set(layer.state_dict()) == {"weight", "bias"}
