"""`convoy.layers` and `convoy.doctor`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from convoy.api.requests import Network, label_of, without_weights
from convoy.cost.layers import LayerFacts, layers_of, totals_of
from convoy.doctor import Check, DoctorOptions, examine


@dataclass(frozen=True, kw_only=True)
class LayerTable:
    """What a network's layers hold and compute, for one image."""

    network: str
    input: tuple[int, ...]
    """Shape of the image: channels, height, width."""
    layers: tuple[LayerFacts, ...]

    def to_dict(self) -> dict[str, Any]:
        """As `convoy layers --json` prints it."""
        return asdict(self) | {"totals": totals_of(self.layers)}


def layers(
    network: Network,
    *,
    input_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
) -> LayerTable:
    """The leaf layers that an image goes through, in order, with their sizes and work.

    Args:
        network: as for `train`.
        input_shape: channels, height, width; a named network's published ones without it.
        num_classes: likewise; of a network that is built by name or function.

    Raises:
        UsageError: the shape is needed and not given, or such images do not go through.
    """
    model, input_shape = without_weights(network, input_shape, num_classes)
    facts = layers_of(model, input_shape)
    return LayerTable(network=label_of(network), input=input_shape, layers=facts)


def doctor(options: DoctorOptions | None = None) -> list[Check]:
    """Examine this machine, and a cluster if one is named, for what keeps ranks from meeting."""
    return examine(options or DoctorOptions())
