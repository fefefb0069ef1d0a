"""Convoy trains and serves convolutional networks on the unequal machines people have.

    import convoy

    result = convoy.train(network="cifar10-quick", dataset="cifar10", workers=2)

Names are loaded when they are first used: every rank imports this package, and none of them
needs what draws pictures and writes curves, which takes seconds to load.
"""

from typing import TYPE_CHECKING, Any

from convoy.errors import ConvoyError
from convoy.version import __version__

if TYPE_CHECKING:
    from convoy.api import (
        Evaluation,
        LayerTable,
        compare,
        doctor,
        evaluate,
        layers,
        measure,
        narrow,
        plan,
        simulate,
        train,
    )
    from convoy.runtime.results import RunResult

__all__ = [
    "ConvoyError",
    "Evaluation",
    "LayerTable",
    "RunResult",
    "__version__",
    "compare",
    "doctor",
    "evaluate",
    "layers",
    "measure",
    "narrow",
    "plan",
    "simulate",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'convoy' has no attribute {name!r}")
    from convoy import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return __all__
