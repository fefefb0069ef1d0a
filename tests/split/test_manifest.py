"""The manifest: what is written is read, and what is wrong is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convoy.errors import ManifestError, UnknownNameError
from convoy.split.manifest import ModelFile, load, model_name, read_model

from . import toy


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = toy.export(tmp_path)
    assert load(tmp_path) == written
    for file in written.files():
        assert len(read_model(tmp_path, file)) > 100
    assert [(m, v) for m, v, _ in written.served()] == [("full", 1), ("relu", 1)]
    assert written.cut("relu")[1].cut == "relu"
    with pytest.raises(UnknownNameError, match=r"unknown cut 'rela'. Nearest: relu"):
        written.cut("rela")


def set_(*path: Any, to: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for part in path[:-1]:
            content = content[part]
        content[path[-1]] = to

    return change


ENTRY = ("variants", 0, "cuts", 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_("format", to=2), "has the format 2, and this Convoy reads 1"),
        (set_("variants", to=[]), "no network in it"),
        (set_("input", "shape", to=[3, 0, 8]), "has the shape"),
        (set_("input", "shape", to=[3, 100000, 100000]), "has the shape"),
        (set_("preprocessing", "std", to=[0.0, 1.0, 1.0]), "above 0"),
        (set_("preprocessing", "mean", to=[0.5]), "expected one of each by channel"),
        (set_(*ENTRY, "model", to="../x"), "no name of a model"),
        (set_(*ENTRY, "model", to="full"), "two models of one name"),
        (set_(*ENTRY, "low", to=[0.0, 0.0]), "bounds for 4 channels"),
        (set_(*ENTRY, "low", to=[99.0] * 4), "no ranges"),
        (set_(*ENTRY, "edge", "file", to="../../etc/passwd"), "not below"),
        (set_(*ENTRY, "edge", "file", to="/etc/passwd"), "not below"),
        (set_(*ENTRY, "features", "shape", to="wide"), r"variants.0.cuts.0.features.shape"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: Callable[[Any], None], says: str) -> None:
    toy.export(tmp_path)
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ManifestError, match=says) as caught:
        load(tmp_path)
    assert str(path) in str(caught.value)
    assert "convoy split export" in str(caught.value)


def test_files_that_are_not_there_or_others(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"cannot read .*manifest.json: No such file"):
        load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ManifestError, match="is not JSON"):
        load(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ManifestError, match="has no format"):
        load(tmp_path)
    with pytest.raises(ManifestError, match="which manifest.json names"):
        read_model(tmp_path, ModelFile(file="a.onnx", sha256="0" * 64))
    (tmp_path / "a.onnx").write_bytes(b"abc")
    with pytest.raises(ManifestError, match=r"its SHA-256 is ba7816bf8f01…, expected 000000000000"):
        read_model(tmp_path, ModelFile(file="a.onnx", sha256="0" * 64))


def test_names_of_models() -> None:
    assert model_name("full", "") == "full"
    assert model_name("full", "pool2:8") == "full-pool2-8"
    assert model_name("layer1.0/relu") == "layer1.0_relu"
