"""Convoy trains and serves convolutional networks on the unequal machines people have.

import convoy

result = convoy.train(network="cifar10-quick", dataset="cifar10", workers=2)
"""

from convoy.api import Evaluation, doctor, evaluate, train
from convoy.errors import ConvoyError
from convoy.runtime.results import RunResult
from convoy.version import __version__

__all__ = [
    "ConvoyError",
    "Evaluation",
    "RunResult",
    "__version__",
    "doctor",
    "evaluate",
    "train",
]
