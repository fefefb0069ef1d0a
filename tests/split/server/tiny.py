"""An exported folder made by hand: two versions of a network, whole and cut, a product each."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from convoy.split import manifest as manifests
from convoy.split.manifest import (
    CutEntry,
    Manifest,
    ModelFile,
    Preprocessing,
    TensorSpec,
    Variant,
)

PICTURE, FEATURES, CLASSES = (3, 8, 8), (4, 4, 4), 5


def network(shape: tuple[int, ...], weights: NDArray[np.float32], names: tuple[str, str]) -> bytes:
    """An ONNX model: each image flat, times `weights` [elements, classes]."""
    nodes = [
        helper.make_node("Flatten", [names[0]], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], [names[1]]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(names[0], TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info(names[1], TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def weights(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Random ones, [elements, classes]."""
    made = np.random.default_rng(seed).normal(size=(int(np.prod(shape)), CLASSES))
    return made.astype(np.float32)


def write(folder: Path, name: str, data: bytes) -> ModelFile:
    """A file of the folder, as manifests speak of it."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return ModelFile(file=name, sha256=hashlib.sha256(data).hexdigest())


def export(
    folder: Path, classes: int = CLASSES, versions: tuple[int, ...] = (1, 2), seed: int = 0
) -> Manifest:
    """Two versions of the whole, and of its cut at pool2; said to tell `classes` apart."""
    variants = []
    for version in versions:
        whole = network(PICTURE, weights(seed + version, PICTURE), ("input", "output"))
        cloud = network(FEATURES, weights(seed + 10 + version, FEATURES), ("features", "output"))
        entry = CutEntry(
            cut="pool2",
            model="pool2",
            features=TensorSpec(name="features", shape=FEATURES),
            low=(-1.0, -2.0, 0.0, 0.0),
            high=(1.0, 2.0, 3.0, 4.0),
            edge=write(folder, f"pool2/{version}/edge.onnx", cloud),
            cloud=write(folder, f"pool2/{version}/cloud.onnx", cloud),
            codecs=(),
            version=version,
        )
        variants.append(
            Variant(
                name="",
                network="tiny",
                model="full",
                whole=write(folder, f"full/{version}/full.onnx", whole),
                codecs=(),
                cuts=(entry,),
                version=version,
            )
        )
    manifest = Manifest(
        network="tiny",
        classes=tuple(map(str, range(CLASSES))),
        input=TensorSpec(name="input", shape=PICTURE),
        output=TensorSpec(name="output", shape=(classes,)),
        preprocessing=Preprocessing(height=8, width=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)),
        variants=tuple(variants),
    )
    (folder / manifests.NAME).write_text(manifests.to_json(manifest))
    return manifest
