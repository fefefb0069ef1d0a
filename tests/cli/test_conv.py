"""`convoy conv bench`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Convoy = Callable[..., Any]
QUICK = ("--seconds", "0.001", "--threads", "1", "--batch-size", "2")


def test_a_network_as_json_and_drawn(convoy: Convoy, tmp_path: Path) -> None:
    picture = tmp_path / "bars.png"
    ran = convoy(
        *("conv", "bench", "--network", "cifar10-full", "--input", "3x16x16", *QUICK),
        *("--json", "--out", str(picture)),
    )
    assert ran.status == 0, ran.err
    found = json.loads(ran.out)
    assert {row["layer"] for row in found["layers"]} == {"conv1", "conv2", "conv3"}
    assert {row["pass"] for row in found["layers"]} == {"forward", "input", "weight"}
    names = {"torch", "torch-channels-last", "direct", "lowering", "pipelined"}
    assert {row["algorithm"] for row in found["layers"]} == names
    assert len(found["layers"]) == 3 * 3 * 5
    sizes = found["shapes"]["conv1"]
    assert sizes["lowered"] == 2 * 16 * 16 * 75
    assert sizes["flops"] == 2 * 2 * 32 * 16 * 16 * 75
    for row in found["layers"]:
        flops = found["shapes"][row["layer"]]["flops"]
        assert row["gflops"] == pytest.approx(flops / row["seconds"] / 1e9)
        assert row["of_peak"] == pytest.approx(row["gflops"] / row["peak_gflops"])
        if row["algorithm"] == "lowering":
            assert row["vs_lowering"] == 1
        if row["algorithm"] == "torch":
            assert row["vs_library"] == 1
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_shapes_as_a_table(convoy: Convoy) -> None:
    ran = convoy(
        *("conv", "bench", "--shape", "4x9x8:6x3x3:2:1:1:2", *QUICK),
        *("--algorithms", "direct,torch"),
    )
    assert ran.status == 0, ran.err
    assert "4x9x8:6x3x3:2:1:1:2" in ran.out
    assert f"{2 * 6 * 5 * 4}" in ran.out  # the output
    assert "direct" in ran.out


def test_layers_by_pattern(convoy: Convoy) -> None:
    ran = convoy(
        "conv", "bench", "--layers", "conv[12]", "--algorithms", "direct", *QUICK, "--json"
    )
    found = json.loads(ran.out)["layers"]
    assert {row["layer"] for row in found} == {"conv1", "conv2"}
    assert {(row["vs_lowering"], row["vs_library"]) for row in found} == {(None, None)}


@pytest.mark.parametrize("which", [("--compare", "dense,conv"), ("--networks", "chavan:3-4-5-10")])
def test_over_image_sizes(convoy: Convoy, tmp_path: Path, which: tuple[str, str]) -> None:
    picture = tmp_path / "sizes.png"
    ran = convoy(
        *(
            "conv",
            "bench",
            "--image-sizes",
            "8,16",
            *which,
            *QUICK,
            "--json",
            "--out",
            str(picture),
        ),
    )
    assert ran.status == 0, ran.err
    rows = [row for row in json.loads(ran.out)["sizes"] if row["device"] == "cpu"]
    names = which[1].split(",")
    assert [(row["image_size"], row["what"]) for row in rows] == [
        (size, name) for size in (8, 16) for name in names
    ]
    assert all(row["forward_s"] > 0 < row["backward_s"] for row in rows)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--network", "resnet19"], "unknown network 'resnet19'"),
        (["--network", "lenet", "--shape", "1x1x1:1x1x1"], "expected one of them"),
        (["--shape", "3x32:8x3x3"], "expected CxHxW:FxKyxKx"),
        (["--shape", "3x2x2:8x3x3"], "no smaller than the kernel"),
        (["--algorithms", "winograd"], "unknown convolution algorithm 'winograd'"),
        (["--layers", "fire*"], "unknown convolution layer 'fire*'"),
        (["--threads", "0"], "--threads 0: expected 1 or more"),
        (["--threads", "two"], "--threads two: expected whole numbers"),
        (["--threads", "4096"], "with more threads than that, times say nothing"),
        (["--batch-size", "0"], "--batch-size 0: expected 1 or more"),
        (["--seconds", "0"], "--seconds 0: expected more than 0"),
        (["--seconds", "nan"], "--seconds nan: expected more than 0"),
        (["--shape", "3x8x8:4x3x3", "--layers", "c*"], "--layers has no meaning for --shape"),
        (["--compare", "dense", "--precision", "fp64"], "--precision has no meaning for"),
        (["--compare", "dense", "--channels", "0"], "--channels 0: expected 1 or more"),
        (["--channels", "4"], "--channels has no meaning for layers one by one"),
        (["--out", "nowhere/x.png"], "--out nowhere/x.png: nowhere is no folder"),
        (["--shape", "64x100000x100000:64x3x3"], "expected a smaller shape or fewer images"),
        (["--precision", "bf16"], "unknown precision 'bf16'"),
        (["--image-sizes", "28", "--compare", "pool"], "unknown layer to compare 'pool'"),
        (["--image-sizes", "28", "--network", "lenet"], "expected one of them"),
        (["--image-sizes", "2", "--networks", "lenet"], "lenet"),
    ],
)
def test_wrong_usage(convoy: Convoy, arguments: list[str], said: str) -> None:
    ran = convoy("conv", "bench", *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert said in " ".join(ran.err.split())
