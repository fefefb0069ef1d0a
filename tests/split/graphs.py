"""Networks as graphs, made once for all tests that look at them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from onnx import TensorProto, helper
from torch import nn

from convoy import networks
from convoy.runtime.run_folder import RunFolder
from convoy.runtime.settings import TrainSettings
from convoy.split.making.exporting import from_torch
from convoy.split.making.graph_cuts import Graph

ZOO = {"lenet5": (1, 8, 8), "cifar10-full": (3, 32, 32), "resnet18": (3, 32, 32)}


@cache
def network_named(name: str) -> nn.Module:
    """One of the zoo, with weights of its own that are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return networks.build(name, input_shape=ZOO[name], num_classes=10).eval()


@cache
def graph_named(name: str) -> Graph:
    """The same as a graph. Exporting takes seconds."""
    return from_torch(network_named(name), ZOO[name], name)


def make_run(path: Path, network: str = "lenet5", data: str = "digits", seed: int = 0) -> Path:
    """The folder of a run on digits that has finished, made without training."""
    folder = RunFolder(path)
    folder.path.mkdir(parents=True)
    folder.write_settings(TrainSettings(network=network, data=data, out=folder.path))
    folder.write_json("plan.json", {"image_shape": [1, 8, 8], "classes": 10})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = networks.build(network, input_shape=(1, 8, 8), num_classes=10)
    folder.write_model(dict(model.state_dict()), {})
    return path


def straight(
    nodes: Sequence[Any],
    *,
    inputs: Sequence[str] = ("a",),
    outputs: Sequence[str] = ("y",),
    initializers: Sequence[Any] = (),
    batch: str | int = "batch",
) -> Any:
    """A model of some nodes, all of whose tensors are float32 [batch, 4]."""
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 4]) for name in names]
        for names in (inputs, outputs)
    ]
    graph = helper.make_graph(list(nodes), "graph", *ends, initializer=list(initializers))
    opset = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10)
