"""Convoy from Python.

import convoy

result = convoy.train(network="cifar10-quick", dataset="cifar10", workers=2, epochs=10)
result = convoy.train(network=MyNet, dataset=(train_set, test_set), strategy="averaging",
                      average_every=16)
print(result.test_accuracy, result.images_per_s)
"""

from convoy.api.facts import LayerTable, doctor, layers
from convoy.api.narrowing import narrow
from convoy.api.planning import compare, measure, plan, simulate
from convoy.api.requests import resolve_settings
from convoy.api.training import Evaluation, evaluate, train

__all__ = [
    "Evaluation",
    "LayerTable",
    "compare",
    "doctor",
    "evaluate",
    "layers",
    "measure",
    "narrow",
    "plan",
    "resolve_settings",
    "simulate",
    "train",
]
