"""Cuts of graphs, beside what dominators of the same graphs say."""

from __future__ import annotations

from typing import Any

import networkx
import pytest
from onnx import TensorProto, helper

from convoy.errors import UnknownNameError, UsageError
from convoy.split.making.graph_cuts import Graph, graph_of, reads

from .graphs import graph_named, straight

FULL = [
    *("conv1", "pool1", "relu1", "norm1", "conv2", "relu2", "pool2", "norm2"),
    *("conv3", "relu3", "pool3", "flatten"),
]
RESNET = [
    *("norm1", "relu1", "stage1.block1", "stage1", "stage2.block1", "stage2"),
    *("stage3.block1", "stage3", "stage4.block1", "stage4", "pool", "flatten"),
]
LENET5 = [
    *("c1", "squash1", "s2.sum", "s2", "squash2", "c3", "squash3", "s4.sum", "s4"),
    *("squash4", "c5", "squash5", "flatten", "f6", "squash6"),
]


@pytest.mark.parametrize(
    ("name", "expected"), [("cifar10-full", FULL), ("resnet18", RESNET), ("lenet5", LENET5)]
)
def test_cuts_bear_the_names_of_modules(name: str, expected: list[str]) -> None:
    assert [cut.name for cut in graph_named(name).offered] == expected


@pytest.mark.parametrize("name", ["cifar10-full", "resnet18", "lenet5"])
def test_cuts_are_the_dominators_of_the_logits(name: str) -> None:
    graph = graph_named(name)
    assert [cut.tensor for cut in graph.cuts] == dominators(graph)


def test_what_is_before_and_after_a_cut() -> None:
    graph = graph_named("cifar10-full")
    pool2 = graph.cut("pool2")
    assert pool2.shape == (32, 8, 8)
    assert pool2.elements == 2048
    convolutions = [32 * 32 * 32 * 3 * 25, 16 * 16 * 32 * 32 * 25, 8 * 8 * 64 * 32 * 25]
    assert pool2.macs_before == sum(convolutions[:2])
    assert pool2.macs_after == convolutions[2] + 1024 * 10
    assert graph.macs == pool2.macs_before + pool2.macs_after
    assert pool2.nodes_before + pool2.nodes_after == graph.cuts[0].nodes_after + 1


def test_a_block_is_found_by_any_of_its_names() -> None:
    graph = graph_named("resnet18")
    assert graph.cut("stage1.block2.relu") == graph.cut("stage1.block2") == graph.cut("stage1")


def test_a_cut_that_is_not_there_is_told_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown cut of cifar10-full 'pol2'\. Nearest: p"):
        graph_named("cifar10-full").cut("pol2")


@pytest.mark.parametrize(("inputs", "outputs"), [(["a", "b"], ["y"]), (["a"], ["y", "z"])])
def test_several_ends_are_refused(inputs: list[str], outputs: list[str]) -> None:
    nodes = [helper.make_node("Add", [inputs[0], inputs[-1]], ["y"])]
    nodes += [helper.make_node("Relu", ["y"], ["z"])]
    model = straight(nodes, inputs=inputs, outputs=outputs)
    which = "2 inputs (a, b)" if len(inputs) == 2 else "2 outputs (y, z)"
    with pytest.raises(UsageError) as raised:
        graph_of(model, "model.onnx")
    assert which in str(raised.value)


def test_constants_and_what_is_made_of_them_are_not_alive() -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4], [1, 2, 3, 4])
    nodes = [
        helper.make_node("Neg", ["w"], ["v"]),
        helper.make_node("Mul", ["a", "v"], ["b"]),
        helper.make_node("Add", ["b", "v"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    graph = graph_of(straight(nodes, initializers=[weight]), "m")
    assert [cut.name for cut in graph.cuts] == ["b", "c"]


def test_no_cut_while_the_image_is_needed_again() -> None:
    nodes = [
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Neg", ["b"], ["c"]),
        helper.make_node("Add", ["c", "a"], ["d"]),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    assert [cut.name for cut in graph_of(straight(nodes), "m").cuts] == ["d"]


def test_what_a_branch_reads_from_outside_is_alive() -> None:
    branch = helper.make_graph(
        [helper.make_node("Add", ["b", "b"], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["batch", 4])],
    )
    nodes = [
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Neg", ["b"], ["c"]),
        helper.make_node("If", ["yes"], ["e"], then_branch=branch, else_branch=branch),
        helper.make_node("Add", ["c", "e"], ["y"]),
    ]
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    assert list(reads(nodes[2])) == ["yes", "b", "b", "b", "b"]
    assert [cut.name for cut in graph_of(straight(nodes, initializers=[yes]), "m").cuts] == ["b"]


def test_a_batch_of_a_fixed_size_is_freed() -> None:
    nodes = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["y"])]
    graph = graph_of(straight(nodes, batch=1), "m")
    assert [cut.shape for cut in graph.cuts] == [(4,)]


def dominators(graph: Graph) -> list[str]:
    """Tensors that every way from the image to the logits goes through, in order."""
    edges: Any = networkx.DiGraph()
    for node in graph.model.graph.node:
        edges.add_edges_from((read, made) for read in reads(node) for made in node.output)
    immediate = networkx.immediate_dominators(edges, graph.input.name)
    found, at = [], immediate[graph.output.name]
    while at != graph.input.name:
        found.append(at)
        at = immediate[at]
    return found[::-1]
