"""`convoy split export`: what is in the folder, and that it computes what the network does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from convoy.api.splitting import export_split
from convoy.api.training import evaluate
from convoy.errors import ManifestError, UnknownNameError, UsageError
from convoy.split import manifest as manifests
from convoy.split.codecs import feature_codec
from convoy.split.making import exporting
from convoy.split.making.checking import BATCHES, Checker
from convoy.split.making.exporting import halves, rename, whole
from convoy.split.manifest import Manifest
from convoy.split.sessions import load

from .graphs import ZOO, graph_named, make_run, network_named, straight


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and one of its network with fewer filters."""
    path = make_run(tmp_path_factory.mktemp("runs") / "run", "chavan:3-8-12-10")
    make_run(path / "narrow" / "pool1" / "f4", "chavan:3-4-12-10")
    return path


@pytest.fixture(scope="module")
def exported(run: Path) -> tuple[Path, Manifest]:
    """All that can be asked for at once."""
    out = run.parent / "exported"
    return out, export_split(run, ["relu1", "pool1", "pool1:4"], out)


@pytest.mark.parametrize(("name", "cut"), [("cifar10-full", "pool2"), ("resnet18", "stage2")])
def test_halves_compute_what_torch_does(name: str, cut: str) -> None:
    graph = graph_named(name)
    edge, cloud = (load(file, name) for file in halves(graph, graph.cut(cut)))
    assert (edge.input, edge.output, cloud.input, cloud.output) == (
        *("image", "features"),
        *("features", "logits"),
    )
    images = np.random.default_rng(1).standard_normal((3, *ZOO[name]), dtype=np.float32)
    with torch.inference_mode():
        expected = network_named(name)(torch.from_numpy(images)).numpy()
    for count in (1, 3):
        features = edge(images[:count])
        assert features.shape == (count, *graph.cut(cut).shape)
        assert cloud(features) == pytest.approx(expected[:count], abs=1e-4)


def test_a_whole_that_differs_is_refused() -> None:
    graph = graph_named("lenet5")
    images = np.random.default_rng(1).random((max(BATCHES), *ZOO["lenet5"]), dtype=np.float32)
    checker = Checker(images=images, whole=load(whole(graph), "lenet5"), name="lenet5")
    network = network_named("lenet5")
    checker.check_whole(network)
    spoilt = torch.nn.Sequential(network, torch.nn.Hardtanh(-0.01, 0.01))
    with pytest.raises(ManifestError, match=r"lenet5 as ONNX: logits differ .* Nothing was writ"):
        checker.check_whole(spoilt)


def test_nothing_of_this_machine_is_in_the_files(exported: tuple[Path, Manifest]) -> None:
    for path in exported[0].rglob("*.onnx"):
        data = path.read_bytes()
        assert b"site-packages" not in data
        assert str(Path(__file__).parents[2]).encode() not in data
        assert not any(node.metadata_props for node in onnx.load(str(path)).graph.node)


def test_the_folder_is_as_its_manifest_says(exported: tuple[Path, Manifest]) -> None:
    out, manifest = exported
    assert manifests.load(out) == manifest
    for file in manifest.files():
        manifests.read_model(out, file)
    assert [(v.name, v.network, v.model, [c.model for c in v.cuts]) for v in manifest.variants] == [
        ("", "chavan:3-8-12-10", "full", ["relu1", "pool1"]),
        ("pool1:4", "chavan:3-4-12-10", "full-pool1-4", ["pool1-4"]),
    ]
    assert manifest.variants[1].cuts[0].features.shape[0] == 4
    assert not [p for p in out.parent.iterdir() if p.name.startswith(".")]
    assert {path.name for path in out.iterdir()} == {
        "manifest.json", "samples.npy", "full", "relu1", "pool1", "full-pool1-4", "pool1-4"
    }  # fmt: skip


def test_triton_reads_the_configuration(exported: tuple[Path, Manifest]) -> None:
    out, manifest = exported
    shape = ", ".join(map(str, manifest.cut("pool1")[1].features.shape))
    config = (out / "pool1" / "config.pbtxt").read_text()
    assert 'platform: "onnxruntime_onnx"\ndefault_model_filename: "cloud.onnx"' in config
    assert f'{{ name: "features", data_type: TYPE_FP32, dims: [ {shape} ] }}' in config
    assert 'output [ { name: "logits", data_type: TYPE_FP32, dims: [ 10 ] } ]' in config
    assert 'default_model_filename: "full.onnx"' in (out / "full" / "config.pbtxt").read_text()


def test_accuracies_are_those_of_the_network(run: Path, exported: tuple[Path, Manifest]) -> None:
    full = exported[1].variants[0]
    expected = evaluate(run).accuracy
    assert full.accuracy == expected
    assert [codec.name for codec in full.codecs] == ["float32", "uint8", "jpeg", "mosaic"]
    assert full.codecs[0].bytes_per_image == 4 * 64
    assert full.codecs[1].bytes_per_image == 64
    for entry in full.cuts:
        by_name = {codec.name: codec for codec in entry.codecs}
        assert by_name["float32"].accuracy == expected
        assert by_name["float32"].bytes_per_image == 4 * entry.features.elements
        assert by_name["uint8"].bytes_per_image == entry.features.elements
        assert by_name["uint4+zstd"].bytes_per_image < entry.features.elements


def test_zeros_of_a_rectifier_travel_as_zeros(exported: tuple[Path, Manifest]) -> None:
    entry = exported[1].cut("relu1")[1]
    assert set(entry.low) == {0.0}
    codec = feature_codec("uint4+zstd", shape=entry.features.shape, low=entry.low, high=entry.high)
    features = np.zeros((2, *entry.features.shape), np.float32)
    features[0] += 0.4 * np.asarray(entry.high, np.float32)[:, None, None]
    assert (codec.decode(codec.encode(features), 2)[1] == 0).all()


def test_without_accuracy(run: Path, tmp_path: Path) -> None:
    manifest = export_split(run, ["pool1"], tmp_path / "out", accuracy=False)
    assert manifest.variants[0].accuracy is None
    assert {c.accuracy for c in manifest.variants[0].cuts[0].codecs} == {None}


def test_a_file_from_elsewhere(tmp_path: Path) -> None:
    weight = onnx.helper.make_tensor("features", onnx.TensorProto.FLOAT, [4], [1, 2, 3, 4])
    nodes = [
        onnx.helper.make_node("Mul", ["a", "features"], ["b"]),
        onnx.helper.make_node("Relu", ["b"], ["image"]),
        onnx.helper.make_node("Neg", ["image"], ["y"]),
    ]
    model = straight(nodes, initializers=[weight], batch=1)
    onnx.save(model, str(tmp_path / "their.onnx"))
    manifest = export_split(tmp_path / "their.onnx", ["b"], tmp_path / "out")
    assert manifest.preprocessing is None
    assert manifest.input.name == "image"
    (entry,) = manifest.variants[0].cuts
    assert [(c.name, c.bytes_per_image) for c in entry.codecs] == [("float32", 16), ("float16", 8)]
    edge = load(manifests.read_model(tmp_path / "out", entry.edge), "edge")
    assert edge(np.ones((2, 4), np.float32)).tolist() == [[1, 2, 3, 4]] * 2


def test_a_file_for_single_images_only(tmp_path: Path) -> None:
    shape = onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [1, 4])
    nodes = [
        onnx.helper.make_node("Neg", ["a"], ["b"]),
        onnx.helper.make_node("Reshape", ["b", "shape"], ["y"]),
    ]
    onnx.save(straight(nodes, initializers=[shape], batch=1), str(tmp_path / "one.onnx"))
    with pytest.raises(UsageError, match=r"a batch of 100|batch of any size"):
        export_split(tmp_path / "one.onnx", ["b"], tmp_path / "out")


def test_two_inputs(tmp_path: Path) -> None:
    model = straight([onnx.helper.make_node("Add", ["a", "b"], ["y"])], inputs=["a", "b"])
    onnx.save(model, str(tmp_path / "two.onnx"))
    with pytest.raises(UsageError, match=r"two\.onnx has 2 inputs \(a, b\) and 1 output \(y\)"):
        export_split(tmp_path / "two.onnx", ["y"], tmp_path / "out")


@pytest.mark.parametrize(
    ("cut", "kind", "text"),
    [
        ("pol1", UnknownNameError, r"unknown cut of chavan:3-8-12-10 'pol1'\. Nearest: pool1"),
        ("pool1:6", UsageError, r"\(there are: 4\)\. Train it: convoy split narrow .*--filters 6"),
        ("pool1:many", UsageError, "expected a layer, or layer:filters"),
    ],
)
def test_cuts_that_are_not_there(
    run: Path, tmp_path: Path, cut: str, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        export_split(run, [cut], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something(run: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").touch()
    with pytest.raises(UsageError, match="is not an empty folder"):
        export_split(run, ["pool1"], tmp_path)


def test_nothing_is_left_where_halves_differ(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swapped(graph: Any, cut: Any) -> tuple[bytes, bytes]:
        edge, _ = halves(graph, cut)
        model = onnx.load_from_string(halves(graph, cut)[1])
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                tensor.raw_data = bytes(len(tensor.raw_data))
        return edge, model.SerializeToString()

    monkeypatch.setattr("convoy.split.making.folder.halves", swapped)
    with pytest.raises(ManifestError, match="cut at relu1: logits differ from those of the whole"):
        export_split(run, ["relu1"], tmp_path / "out", accuracy=False)
    assert not list(tmp_path.iterdir())


def test_renaming_makes_way() -> None:
    model = straight([onnx.helper.make_node("Neg", ["a"], ["b"]),
                      onnx.helper.make_node("Neg", ["b"], ["y"])])  # fmt: skip
    rename(model, {"a": "b"})
    assert [(list(n.input), list(n.output)) for n in model.graph.node] == [
        (["b"], ["b.0"]),
        (["b.0"], ["y"]),
    ]


def test_a_network_that_cannot_be_followed() -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[x.sum().item() > 0 :]

    with pytest.raises(UsageError, match="network odd cannot be written as ONNX"):
        exporting.from_torch(Odd(), (1, 4, 4), "odd")


def test_json_has_the_manifest(exported: tuple[Path, Manifest]) -> None:
    content = json.loads((exported[0] / "manifest.json").read_text())
    assert content["calibration_images"] == 500
    assert content["versions"]["opset"] == "20"
