"""A network as ONNX, whole and in halves.

What is written has no metadata: the exporter leaves stack traces there, with paths of the machine.
Tensors that enter and leave are called `image`, `features` and `logits`; a batch may be of any
size.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx.utils
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convoy.errors import UsageError
from convoy.split.making.graph_cuts import BATCH, Graph, GraphCut, graph_of

OPSET = 20
"""Of ONNX's operators: ONNX Runtime reads it since 1.17, and Triton since 24.03."""
IMAGE, FEATURES, LOGITS = "image", "features", "logits"
_EXAMPLES = 2
"""Images that the exporter follows; a single one it would take for the only batch size."""


def from_torch(network: nn.Module, image_shape: tuple[int, ...], name: str) -> Graph:
    """What `network` computes when it is evaluated, in float32; it is not changed.

    Raises:
        UsageError: torch.onnx cannot follow its forward pass.
    """
    judged = _exportable(copy.deepcopy(network).to("cpu", torch.float32).eval())
    batch = {0: torch.export.Dim(BATCH)}
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # it tells of packages that no network here needs
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # of torch about torch
            program = torch.onnx.export(
                judged,
                (torch.zeros(_EXAMPLES, *image_shape),),
                dynamo=True,
                input_names=[IMAGE],
                output_names=[LOGITS],
                dynamic_shapes=(batch,),
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # whatever a forward pass and the exporter may raise
        reason = str(error).strip().splitlines()
        raise UsageError(
            f"network {name} cannot be written as ONNX: {reason[0] if reason else error!r}. "
            "Its forward pass has to be one that torch.export can follow, for batches of any size"
        ) from error
    finally:
        quiet.setLevel(level)
    assert program is not None, "with dynamo there is a program"
    return graph_of(program.model_proto, name)


class ScaledAverage(nn.Module):
    """Average pooling by a divisor that is not the window's size: the average, and a factor.

    torch's exporter passes over `divisor_override`, and the file computes something else.
    """

    def __init__(self, pool: nn.AvgPool2d) -> None:
        super().__init__()
        assert pool.divisor_override is not None
        kernel = pool.kernel_size
        self.kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        self.stride, self.padding = pool.stride, pool.padding
        self.factor = self.kernel[0] * self.kernel[1] / pool.divisor_override

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.kernel, self.stride, self.padding) * self.factor


def _exportable(network: nn.Module) -> nn.Module:
    """`network` with modules that the exporter gets wrong replaced by ones that it gets right."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AvgPool2d) and child.divisor_override and not child.ceil_mode:
                setattr(module, name, ScaledAverage(child))
    return network


def from_file(path: Path) -> Graph:
    """An ONNX file from anywhere, with its ends called as ours are.

    Raises:
        UsageError: it cannot be read, or has several inputs or outputs.
    """
    try:
        model = onnx.load(str(path))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # its errors have no common base
        raise UsageError(f"{path} is not an ONNX model: {error}") from None
    found = graph_of(model, str(path))
    rename(found.model, {found.input.name: IMAGE, found.output.name: LOGITS})
    return graph_of(found.model, str(path))


def whole(graph: Graph) -> bytes:
    """The network as a file's content."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    return _written(model)


def halves(graph: Graph, cut: GraphCut) -> tuple[bytes, bytes]:
    """What is before the cut and what is after it, each as a file's content."""
    extractor = onnx.utils.Extractor(graph.model)
    ends = ([graph.input.name], [cut.tensor]), ([cut.tensor], [graph.output.name])
    files = []
    for inputs, outputs in ends:
        model = extractor.extract_model(inputs, outputs)
        rename(model, {cut.tensor: FEATURES})
        files.append(_written(model))
    return files[0], files[1]


def rename(model: Any, names: Mapping[str, str]) -> None:
    """Give some tensors of a model other names; who has such a name already makes way for it."""
    graph = model.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    wanted = {old: new for old, new in names.items() if old != new}
    for new in list(wanted.values()):
        if new in taken and new not in wanted:
            wanted[new] = next(n for i in range(len(taken) + 1) if (n := f"{new}.{i}") not in taken)
    if wanted:
        _rename(graph, wanted)


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, names)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)


def _written(model: Any) -> bytes:
    """Without its metadata, of which the model itself is rid, too."""
    model.doc_string = ""
    del model.metadata_props[:]
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        _strip_nodes(function.node)
    _strip(model.graph)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _strip(graph: Any) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Any) -> None:
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""
            for inner in (attribute.g, *attribute.graphs):
                if len(inner.node):
                    _strip(inner)
