"""How much memory training takes at its peak: an estimate from sizes, not a measurement."""

from __future__ import annotations

from convoy.cost.layers import NetworkFacts

PROCESS_BYTES = 400 * 1024**2
"""Of a rank's process with torch and Ray, before there is any network."""


def kept_activations(network: NetworkFacts, samples: int) -> int:
    """Elements of feature maps at the end of a forward pass: all outputs, the largest twice."""
    outputs = [layer.activations for layer in network.layers]
    return samples * (sum(outputs) + max(outputs, default=0))


def peak_bytes(
    network: NetworkFacts,
    samples: int,
    *,
    optimizer_states: int,
    element_bytes: int = 4,
    copies_state: bool = False,
    activations: int | None = None,
    parameters: int | None = None,
) -> int:
    """Bytes of a rank where it holds most.

    That is at the end of its forward pass: parameters, gradients, the optimizer's state, and
    feature maps, which are kept for the backward pass. Where it has only some of the parameters
    while it trains, it may also be between steps, when it is given all of them, or as its crew
    forms, when gradients of all are tried out on a few samples.

    Args:
        optimizer_states: tensors of a parameter's size that the optimizer keeps for it.
        copies_state: a copy of parameters and optimizer state is held besides, as `averaging` does.
        activations: elements of feature maps; those of so many samples where it is not said.
        parameters: trainable parameters that the rank trains; all where it is not said.
    """
    states = 1 + optimizer_states
    if activations is None:
        activations = kept_activations(network, samples)
    if parameters is None:
        parameters = network.num_parameters
    whole = network.num_parameters * states
    at_times = whole + network.num_parameters if parameters < network.num_parameters else 0
    most = max(parameters * (states + 1) + activations, at_times)
    kept = most + 2 * network.num_buffers + (whole if copies_state else 0)
    return PROCESS_BYTES + kept * element_bytes
