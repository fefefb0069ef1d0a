"""Facts about a network that planning needs, read off its modules without running it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """Sizes of a network's state, in elements."""

    num_parameters: int
    """Trainable parameters."""
    num_buffers: int
    """Floating-point buffers: running means and variances."""
    batch_norm_channels: tuple[int, ...] = ()
    """Channels of each batch normalisation, in module order."""


def facts_of(network: nn.Module) -> NetworkFacts:
    """Count `network`'s parameters and buffers; shared parameters count once."""
    return NetworkFacts(
        num_parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
        num_buffers=sum(b.numel() for b in network.buffers() if b.is_floating_point()),
        batch_norm_channels=tuple(
            m.num_features for m in network.modules() if isinstance(m, _BatchNorm)
        ),
    )
