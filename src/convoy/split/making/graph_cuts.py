"""Where an ONNX graph can be cut in two: the places that a single tensor crosses.

    image ─ conv1 ─ relu1 ┬ conv2 ─ conv3 ┬ add ─ pool ─ logits
                          └───────────────┘
          ┊       ┊                           ┊      ┊

One sweep over the nodes, which ONNX keeps sorted, with the set of tensors that are alive. What
depends on no image (weights, constants, what is computed of them) does not count: either half can
have it. Cuts bear the names of the modules whose output crosses, where torch's exporter left them.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from convoy.errors import UnknownNameError, UsageError
from convoy.split.manifest import TensorSpec

SCOPES = "pkg.torch.onnx.name_scopes"
"""Node metadata: the modules that a node is in, outermost first, and its own name."""
BATCH = "batch"


@dataclass(frozen=True, kw_only=True)
class GraphCut:
    """A place that a single tensor crosses: float32, with a row for each image."""

    name: str
    """Of the outermost module that ends here; of the tensor, where none does."""
    modules: tuple[str, ...]
    """Those that end here, outermost first."""
    tensor: str
    """What crosses, as the graph calls it."""
    shape: tuple[int, ...]
    """Of one image."""
    nodes_before: int
    nodes_after: int
    macs_before: int
    """Multiplications with an addition for one image, in convolutions and dense layers."""
    macs_after: int

    @property
    def elements(self) -> int:
        """Of one image."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A network as a graph, and where it can be cut."""

    name: str
    """For errors."""
    model: Any
    """onnx.ModelProto, with the shapes of what is within."""
    input: TensorSpec
    output: TensorSpec
    macs: int
    cuts: tuple[GraphCut, ...]
    """In order of execution."""

    @property
    def offered(self) -> tuple[GraphCut, ...]:
        """Those at which a module ends; all of them, where the graph knows of no modules."""
        return tuple(cut for cut in self.cuts if cut.modules) or self.cuts

    def cut(self, name: str) -> GraphCut:
        """The cut of that name. Raises UnknownNameError, which offers the nearest."""
        for found in self.cuts:
            if name in (found.name, *found.modules, found.tensor):
                return found
        known = [n for cut in self.offered for n in (cut.modules or (cut.name,))]
        if not known:
            raise UsageError(
                f"{self.name} cannot be cut at {name!r} nor anywhere: at every place of it more "
                "than a single tensor is alive"
            )
        raise UnknownNameError(f"cut of {self.name}", name, known)


def graph_of(model: Any, name: str) -> Graph:
    """What there is to know of a model's graph.

    Args:
        model: onnx.ModelProto; it is not changed.
        name: for errors.

    Raises:
        UsageError: it has several inputs or outputs, or such that are no batches of float32.
    """
    model = _inferred(model, name)
    graph = model.graph
    constant = {tensor.name for tensor in graph.initializer}
    constant |= {sparse.values.name for sparse in graph.sparse_initializer}
    inputs = [value for value in graph.input if value.name not in constant]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise UsageError(
            f"{name} has {_listed(inputs, 'input')} and {_listed(graph.output, 'output')}; a "
            "network that is to be cut takes one batch of images and gives one batch of logits. "
            "Export it with one of each"
        )
    values = {v.name: v for v in (*graph.value_info, *graph.output, *inputs)}
    ends = [_batch_shape(values[v.name]) for v in (inputs[0], graph.output[0])]
    for value, shape in zip((inputs[0], graph.output[0]), ends, strict=True):
        if not shape:
            raise UsageError(
                f"{name}: {value.name!r} is {_described(value)}; expected float32 with a row for "
                "each image of a batch of any size, and all other sizes known"
            )
    for node in graph.node:
        if not any(read and read not in constant for read in reads(node)):
            constant.update(node.output)
    nodes = [node for node in graph.node if not set(node.output) <= constant]
    macs = [_macs(node, values, graph.initializer) for node in nodes]
    return Graph(
        name=name,
        model=model,
        input=TensorSpec(name=inputs[0].name, shape=ends[0] or ()),
        output=TensorSpec(name=graph.output[0].name, shape=ends[1] or ()),
        macs=sum(macs),
        cuts=tuple(
            _cuts(
                nodes,
                constant,
                values,
                macs,
                image=inputs[0].name,
                output=graph.output[0].name,
            )
        ),
    )


def reads(node: Any) -> Iterator[str]:
    """The tensors that a node reads, those within its branches and loops included."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            made = {v.name for v in (*inner.input, *inner.initializer)}
            for within in inner.node:
                yield from (read for read in reads(within) if read not in made)
                made.update(within.output)
            yield from (value.name for value in inner.output if value.name not in made)


def _cuts(
    nodes: Sequence[Any],
    constant: set[str],
    values: dict[str, Any],
    macs: list[int],
    *,
    image: str,
    output: str,
) -> Iterator[GraphCut]:
    last_read = {read: at for at, node in enumerate(nodes) for read in reads(node)}
    last_read[output] = len(nodes)
    scopes = [_scopes(node) for node in nodes]
    ends = {module: at for at, modules in enumerate(scopes) for module in modules}
    maker = {made: at for at, node in enumerate(nodes) for made in node.output}
    taken, alive, seen = set(ends), {image}, {image, output}
    for at, node in enumerate(nodes):
        alive |= set(node.output) - constant
        alive = {tensor for tensor in alive if last_read.get(tensor, -1) > at}
        if len(alive) != 1:
            continue
        (tensor,) = alive
        shape = _batch_shape(values[tensor]) if tensor in values else None
        if tensor in seen or not shape:
            continue
        seen.add(tensor)
        made_at = maker[tensor]
        modules = [module for module in scopes[made_at] if ends[module] == made_at]
        yield GraphCut(
            name=modules[0] if modules else tensor if tensor not in taken else f"{tensor}.{at}",
            modules=tuple(modules),
            tensor=tensor,
            shape=shape,
            nodes_before=at + 1,
            nodes_after=len(nodes) - at - 1,
            macs_before=sum(macs[: at + 1]),
            macs_after=sum(macs[at + 1 :]),
        )


def _scopes(node: Any) -> list[str]:
    """The modules that a node is in, outermost first."""
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            try:
                found = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError):
                return []
            return [scope for scope in map(str, found[:-1]) if scope]
    return []


def _inferred(model: Any, name: str) -> Any:
    """A copy whose batch may be of any size, with the shapes of all that is within."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    graph = copied.graph
    given = {tensor.name for tensor in graph.initializer}
    fixed = [v for v in graph.input if v.name not in given and _has_fixed_rows(v)]
    if fixed:
        for value in (*fixed, *(v for v in graph.output if _has_fixed_rows(v))):
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
        del graph.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(copied, data_prop=True)
    except Exception as error:  # its errors have no common base
        raise UsageError(f"{name} is not a sound ONNX model: {error}") from None


def _has_fixed_rows(value: Any) -> bool:
    dims = value.type.tensor_type.shape.dim
    return len(dims) > 1 and dims[0].HasField("dim_value")


def _batch_shape(value: Any) -> tuple[int, ...] | None:
    """Of one image; None unless it is float32 with a row for each image."""
    kind = value.type.tensor_type
    dims = kind.shape.dim
    if kind.elem_type != onnx.TensorProto.FLOAT or len(dims) < 2 or dims[0].HasField("dim_value"):
        return None
    sizes = tuple(int(dim.dim_value) for dim in dims[1:])
    return sizes if min(sizes) > 0 else None


def _macs(node: Any, values: dict[str, Any], initializers: Sequence[Any]) -> int:
    """Multiplications with an addition, for one image; 0 where they cannot be told."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    weights: tuple[int, ...] = next(
        (tuple(map(int, t.dims)) for t in initializers if t.name == node.input[1]), ()
    )
    if not weights and node.input[1] in values:
        dims = values[node.input[1]].type.tensor_type.shape.dim
        weights = tuple(int(dim.dim_value) for dim in dims)
    spread = node.input[0] if node.op_type == "ConvTranspose" else node.output[0]
    shape = _batch_shape(values[spread]) if spread in values else None
    if not weights or shape is None:
        return 0
    if node.op_type in ("Conv", "ConvTranspose"):
        return math.prod(shape) * math.prod(weights[1:])
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return math.prod(shape) * weights[-1 if transposed else -2] if len(weights) > 1 else 0


def _listed(values: Sequence[Any], what: str) -> str:
    names = f" ({', '.join(value.name for value in values)})" if values else ""
    return f"{len(values)} {what}{'s' * (len(values) != 1)}{names}"


def _described(value: Any) -> str:
    kind = value.type.tensor_type
    dims = [
        str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim
    ]
    return f"{onnx.TensorProto.DataType.Name(kind.elem_type).lower()} [{', '.join(dims)}]"
