"""`convoy split plan` and `convoy split export`, as commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from convoy.split import manifest

Convoy = Callable[..., Any]
PLAN = ("--edge", "0.5", "--cloud", "1", "--bandwidth", "10 Mbit/s")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An ONNX file from elsewhere: two nodes, one cut."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y")
    ]
    nodes = [helper.make_node("Neg", ["x"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:])
    path = tmp_path / "theirs[1].onnx"
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))
    return path


def test_a_plan_for_people(convoy: Convoy, model: Path, tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    ran = convoy("split", "plan", str(model), *PLAN, "--picture", str(picture))
    assert ran.status == 0, ran.err
    assert "theirs[1], 0.5 cores and 1 core at 10 Mbit/s, batch of 1, by latency" in ran.out
    for way in ("edge", "picture/float32", "h/float16"):
        assert any(line.split()[:1] == [way] for line in ran.out.splitlines())
    assert "Compute all on the edge." in ran.out
    assert "no accuracy was measured" in ran.out
    assert picture.stat().st_size > 10_000


def test_a_plan_for_programs(convoy: Convoy, model: Path) -> None:
    ran = convoy("split", "plan", str(model), *PLAN, "--batch-size", "8", "--json")
    document = json.loads(ran.out)
    by_name = {row["name"]: row for row in document["rows"]}
    assert document["rows"][document["chosen"]]["name"] == "edge"
    assert by_name["h/float16"]["sent_bytes"] == 8 * 4 * 2
    assert len(document["over_bandwidth"]) == 61


def test_an_export(convoy: Convoy, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = convoy("split", "export", str(model), "--cut", "h", "--out", str(out), "--json")
    assert ran.status == 0, ran.err
    assert json.loads(ran.out) == json.loads(manifest.to_json(manifest.load(out)))
    ran = convoy("split", "export", str(model), "--cut", "h", "--out", str(out))
    assert ran.status == 2
    assert "is not an empty folder" in ran.err
    ran = convoy("split", "export", str(model), "--cut", "h", "--out", str(tmp_path / "again"))
    assert "the picture" in ran.out
    assert "is written" in ran.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("plan", "MODEL", "--edge", "1", "--cloud", "1"), "say what joins edge and cloud"),
        (
            ("plan", "MODEL", "--edge", "1", "--cloud", "1", "--bandwidth", "0 Mbit/s"),
            "--bandwidth: found '0 Mbit/s', expected a number above 0",
        ),
        (("plan", "MODEL", *PLAN, "--for", "latancy"), "Nearest: latency"),
        (("plan", "MODEL", *PLAN, "--cut", "q"), "unknown cut of"),
        (("plan", "nothing.onnx", *PLAN), "cannot read nothing.onnx"),
        (("plan", "nothing", *PLAN), "nothing is not a run folder"),
        (("export", "MODEL", "--cut", "q", "--out", "o"), "unknown cut of"),
        (("export", "MODEL", "--cut", ",", "--out", "o"), "name at least one cut"),
    ],
)
def test_wrong_usage(convoy: Convoy, model: Path, arguments: tuple[str, ...], said: str) -> None:
    ran = convoy("split", *(str(model) if word == "MODEL" else word for word in arguments))
    assert (ran.status, ran.out) == (2, "")
    assert said in " ".join(ran.err.split())
