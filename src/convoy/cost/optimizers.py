"""What optimizers keep, and what follows from it."""

from __future__ import annotations

OPTIMIZER_STATES = {"sgd": 1, "adam": 2, "adamax": 2, "adagrad": 1, "adadelta": 2}
"""Tensors of a parameter's size that each optimizer keeps; sgd's is its momentum."""


def has_momentum(optimizer: str, momentum: float = 0.9) -> bool:
    """Whether it goes on in the direction of former steps; sgd does with `momentum`."""
    return optimizer in ("adam", "adamax") or (optimizer == "sgd" and momentum > 0)
