"""By which algorithm each of a convolution's three passes is computed.

"pipelined"                      all of them by that
"torch/pipelined/lowering"       output / gradient of the input / gradient of the weight
"""

from __future__ import annotations

from typing import NamedTuple

from convoy.errors import UnknownNameError, UsageError

AUTO = "auto"
"""Whichever is fastest here."""
TORCH = "torch"
"""torch's own: oneDNN on a CPU, cuDNN on a GPU."""
TORCH_CONTIGUOUS, TORCH_LAST = "torch-contiguous", "torch-channels-last"
"""torch's own in one of its layouts, whatever that of the network: tensors are brought into it and
back. In the latter the channels of a position lie side by side."""
DIRECT, LOWERING, PIPELINED = "direct", "lowering", "pipelined"
ALGORITHMS = (DIRECT, LOWERING, PIPELINED)
OF_TORCH = (TORCH, TORCH_CONTIGUOUS, TORCH_LAST)
CHOICES = (*OF_TORCH, *ALGORITHMS)
PASSES = ("forward", "input", "weight")
"""The output, the gradient of the input, and that of the weight."""


class ByPass(NamedTuple):
    """An algorithm for each pass."""

    forward: str
    input: str
    weight: str

    def __str__(self) -> str:
        return self.forward if len(set(self)) == 1 else "/".join(self)


def by_pass(text: str) -> ByPass:
    """Read what `str` of a ByPass writes.

    Raises:
        UnknownNameError: no such algorithm.
        UsageError: neither one nor three.
    """
    names = text.split("/")
    for name in names:
        if name not in CHOICES:
            raise UnknownNameError("convolution algorithm", name, CHOICES)
    if len(names) == 1:
        names = [names[0], names[0], names[0]]  # torch.compile follows this
    if len(names) != 3:
        raise UsageError(
            f"convolution algorithm {text!r}: expected one, or three with / between them: "
            "of the output, the gradient of the input and that of the weight"
        )
    return ByPass(*names)
