"""An exported folder made by hand: a network of a few numbers, whole and cut at `relu`.

image [3, 8, 8] ─ conv 1x1 ─ relu ┊ mean over places ─ dense ─ logits [5]
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from convoy.split.manifest import (
    CodecFacts,
    CutEntry,
    Manifest,
    ModelFile,
    Preprocessing,
    TensorSpec,
    Variant,
    to_json,
)

BY = Preprocessing(height=8, width=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
CLASSES = ("ant", "bee", "cat", "dog", "elk")
FEATURES = (4, 8, 8)


def weights() -> dict[str, np.ndarray]:
    """Of both layers."""
    draw = np.random.default_rng(3)
    return {
        "w1": draw.normal(size=(4, 3, 1, 1)).astype(np.float32),
        "w2": draw.normal(size=(4, 5)).astype(np.float32),
    }


def _model(first: str, last: str) -> bytes:
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["maps"]),
        helper.make_node("Relu", ["maps"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w2"], ["logits"]),
    ]
    begin, end = {"image": 0, "features": 2}[first], {"features": 2, "logits": 5}[last]
    shapes = {"image": (3, 8, 8), "features": FEATURES, "logits": (5,)}
    used = {name for node in nodes[begin:end] for name in node.input}
    graph = helper.make_graph(
        nodes[begin:end],
        "toy",
        [helper.make_tensor_value_info(first, TensorProto.FLOAT, ["n", *shapes[first]])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", *shapes[last]])],
        [numpy_helper.from_array(w, name) for name, w in weights().items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def logits(pixels: np.ndarray) -> np.ndarray:
    """What the network makes of uint8 [n, 8, 8, 3]: in NumPy, by hand."""
    tensor = (pixels / 255.0 - 0.5) / 0.25
    maps = np.maximum(tensor @ weights()["w1"][:, :, 0, 0].T, 0)
    return maps.mean((1, 2)) @ weights()["w2"]


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """uint8 [count, 8, 8, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)


def export(folder: Path) -> Manifest:
    """Write the folder."""

    def write(name: str, first: str, last: str) -> ModelFile:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_model(first, last))
        return ModelFile(file=name, sha256=hashlib.sha256(path.read_bytes()).hexdigest())

    entry = CutEntry(
        cut="relu",
        model="relu",
        features=TensorSpec(name="features", shape=FEATURES),
        low=(0.0,) * 4,
        high=tuple(float(2 * abs(w).sum()) for w in weights()["w1"]),  # pixels are within 2
        edge=write("relu/1/edge.onnx", "image", "features"),
        cloud=write("relu/1/cloud.onnx", "features", "logits"),
        codecs=tuple(
            CodecFacts(name=name, bytes_per_image=size, accuracy=accuracy)
            for name, size, accuracy in (
                ("float32", 1024.0, 0.9),
                ("uint8+zstd", 150.0, 0.9),
                ("uint4+zstd", 80.0, 0.85),
            )
        ),
    )
    variant = Variant(
        name="",
        network="toy",
        model="full",
        whole=write("full/1/full.onnx", "image", "logits"),
        codecs=tuple(
            CodecFacts(name=name, bytes_per_image=size, accuracy=0.9)
            for name, size in (("float32", 768.0), ("uint8", 192.0), ("jpeg", 700.0))
        ),
        cuts=(entry,),
        accuracy=0.9,
    )
    manifest = Manifest(
        network="toy",
        classes=CLASSES,
        input=TensorSpec(name="image", shape=(3, 8, 8)),
        output=TensorSpec(name="logits", shape=(5,)),
        preprocessing=BY,
        variants=(variant,),
    )
    (folder / "manifest.json").write_text(to_json(manifest))
    return manifest
