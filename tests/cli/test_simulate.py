from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from convoy import networks
from convoy.cost.layers import fingerprint, layers_of
from convoy.cost.profile import DeviceProfile, LayerProfile, LinkProfile, Profile, ProfiledNetwork

Convoy = Callable[..., Any]
FIGURES = ("--flops", "1 GFLOP/s", "--bandwidth", "1 Gbit/s", "--latency", "0 s")
WORK = ("--network", "lenet", "--batch-size", "64")


def taken(path: Path) -> Profile:
    """A profile of lenet on two machines; each layer takes a millisecond for each sample."""
    shape = (1, 28, 28)
    with torch.device("meta"):
        found = layers_of(networks.build("lenet", input_shape=shape, num_classes=10), shape)
    layers = tuple(
        LayerProfile(name=i.name, forward_s=(0.001, 0.008), backward_s=(0.002, 0.016))
        for i in found
    )
    total = len(layers)
    devices = tuple(
        DeviceProfile(
            machine=name,
            device="cpu",
            hardware="x",
            cores=2,
            threads=1,
            memory_bytes=2**36,
            samples=(1, 8),
            load_s=(0.0, 0.0),
            forward_s=(0.001 * total, 0.008 * total),
            backward_s=(0.002 * total, 0.016 * total),
            update_s=0.0,
            layers=layers,
        )
        for name in ("tower", "old")
    )
    profile = Profile(
        network=ProfiledNetwork(
            name="lenet", input=shape, classes=10, fingerprint=fingerprint(found)
        ),
        precision="fp32",
        optimizer="sgd",
        memory_format="default",
        batch_size=8,
        versions={},
        devices=devices,
        links=(LinkProfile(between=("tower", "old"), bandwidth_bytes_s=1.25e8, latency_s=0.0),),
    )
    profile.save(path)
    return profile


def test_figures_as_json(convoy: Convoy) -> None:
    ran = convoy("simulate", *WORK, *FIGURES, "--nodes", "1,2,4,...,16,128", "--json")
    found = json.loads(ran.out)
    assert ran.status == 0
    assert [point["nodes"] for point in found["points"]] == [1, 2, 4, 8, 16]
    assert [left["nodes"] for left in found["skipped"]] == [128]
    totals = json.loads(convoy("layers", "lenet", "--json").out)["totals"]
    work = 2 * 64 * (totals["macs"] + totals["backward_macs"]) / 1e9
    alone = found["points"][0]
    assert alone["strategy"] == "data"
    assert alone["batch_size"] == 64
    assert alone["images_per_s"] == pytest.approx(64 / work)
    assert alone["efficiency"] == 1
    for point in found["points"]:
        assert point["compute_s"] == pytest.approx(work / point["nodes"])
        exchange = 2 * (point["nodes"] - 1) / point["nodes"] * totals["parameter_bytes"] / 1.25e8
        assert 0 <= point["exposed_comm_s"] <= exchange * (1 + 1e-9)


def test_a_picture_and_a_table(convoy: Convoy) -> None:
    arguments = ("--batch-per-node", "8", "--nodes", "1,2", "--out", "drawn")
    ran = convoy("simulate", "--network", "lenet", *FIGURES, *arguments)
    assert (ran.status, ran.err) == (0, "")
    assert "images/s" in ran.out
    assert "data: communication" in ran.out
    assert Path("drawn/scaling.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads(Path("drawn/scaling.json").read_text())
    assert [point["batch_size"] for point in kept["points"]] == [8, 16]


def test_a_machine_of_a_profile(convoy: Convoy) -> None:
    taken(Path("profile.json"))
    asked = ("--nodes", "1,2", "--batch-per-node", "8", "--json")
    ran = convoy("simulate", "--profile", "profile.json", "--like", "tower", *asked)
    found = json.loads(ran.out)
    layers = len(json.loads(convoy("layers", "lenet", "--json").out)["layers"])
    assert found["network"] == "lenet"
    assert found["points"][0]["step_s"] == pytest.approx(0.024 * layers)
    assert found["links"]["bandwidth_bytes_s"] == pytest.approx(1.25e8)
    assert any("as measured between tower and old" in note for note in found["notes"])


def test_another_image_size_and_a_faster_machine(convoy: Convoy) -> None:
    taken(Path("profile.json"))
    Path("cluster.toml").write_text(
        '[[machine]]\nname = "tower"\n[[machine]]\nname = "wish"\nlike = "tower"\nspeed = 2.0\n'
        '[network]\nbandwidth = "10 Gbit/s"\n'
    )
    asked = ("--profile", "profile.json", "--cluster", "cluster.toml", "--nodes", "1", "--json")
    batch = ("--batch-size", "8")
    plain = json.loads(convoy("simulate", *asked, *batch, "--like", "tower").out)
    faster = json.loads(convoy("simulate", *asked, *batch, "--like", "wish").out)
    ratio = plain["points"][0]["step_s"] / faster["points"][0]["step_s"]
    assert ratio == pytest.approx(2)
    assert faster["links"]["bandwidth_bytes_s"] == 1.25e9
    resized = convoy("simulate", *asked, *batch, "--like", "tower", "--image-size", "1x56x56")
    found = json.loads(resized.out)
    assert any("scaled by multiply-adds to 1x56x56" in note for note in found["notes"])
    assert found["points"][0]["step_s"] > 3 * plain["points"][0]["step_s"]


def test_a_cluster_files_figures(convoy: Convoy) -> None:
    Path("cluster.toml").write_text(
        '[[machine]]\nname = "box"\ngpus = 4\nflops = "2 GFLOP/s"\nwithin = "80 GB/s"\n'
        '[[machine]]\nname = "newer"\nlike = "box"\nspeed = 2.0\n'
        '[network]\nlatency = "0 s"\n'
    )
    arguments = ("--cluster", "cluster.toml", "--nodes", "1,8", "--all-reduce", "hierarchical")
    ran = convoy("simulate", *WORK, *arguments, "--like", "newer", "--json")
    found = json.loads(ran.out)
    figured = json.loads(
        convoy("simulate", *WORK, "--nodes", "1", *FIGURES[2:], "--flops", "4GFLOPS", "--json").out
    )
    assert found["links"]["per_host"] == 4
    assert found["points"][0]["step_s"] == pytest.approx(figured["points"][0]["step_s"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*WORK, "--nodes", "1"], "how fast a node computes is nowhere said"),
        ([*WORK, "--nodes", "1", "--flops", "1 TFLOP/s"], "how fast the links are"),
        ([*WORK, *FIGURES, "--nodes", "4,2"], "--nodes 4,2: they do not rise"),
        ([*WORK, *FIGURES, "--nodes", "1", "--flops", "fast"], "--flops: found 'fast'"),
        ([*WORK, *FIGURES, "--nodes", "1", "--bandwidth", "9"], "--bandwidth: found '9'"),
        ([*WORK, *FIGURES, "--nodes", "1", "--latency", "9"], "--latency: found '9'"),
        ([*WORK, *FIGURES, "--nodes", "1", "--all-reduce", "tree"], "--all-reduce 'tree'"),
        ([*WORK, *FIGURES, "--nodes", "1", "--per-host", "0"], "--per-host 0"),
        ([*WORK, *FIGURES, "--nodes", "1", "--baseline", "0"], "--baseline 0"),
        ([*WORK, *FIGURES, "--nodes", "1", "--strategy", "dta"], "unknown strategy 'dta'"),
        ([*WORK, *FIGURES, "--nodes", "1", "--like", "tower"], "--like tower: a machine of what?"),
        ([*WORK, *FIGURES, "--nodes", "1", "--profile", "p.json"], "leave one out"),
        ([*WORK, *FIGURES, "--nodes", "1", "--image-size", "9x9"], "--image-size 9x9: expected"),
        ([*WORK, *FIGURES, "--nodes", "1", "--batch-per-node", "8"], "expected either"),
        (["--network", "lenet", *FIGURES, "--nodes", "1"], "no batch: expected either"),
        (["--batch-size", "8", *FIGURES, "--nodes", "1"], "no --network"),
        ([*WORK, "--nodes", "1", "--profile", "none.json"], "cannot read the profile"),
    ],
)
def test_wrong_usage(convoy: Convoy, arguments: list[str], said: str) -> None:
    ran = convoy("simulate", *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert said in ran.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--like", "towel"], "unknown machine 'towel'"),
        ([], "say which of tower, old with --like"),
        (["--like", "old", "--network", "lenet5"], "the profile is of lenet"),
    ],
)
def test_wrong_use_of_a_profile(convoy: Convoy, more: list[str], said: str) -> None:
    taken(Path("profile.json"))
    arguments = ("--profile", "profile.json", "--nodes", "1", "--batch-size", "8")
    ran = convoy("simulate", *arguments, *more)
    assert (ran.status, ran.out) == (2, "")
    assert said in ran.err


def test_an_option_of_a_strategy(convoy: Convoy) -> None:
    network = ("--network", "resnet18", "--image-size", "3x32x32", "--batch-per-node", "8")
    arguments = (*network, *FIGURES[:4], "--latency", "1 ms", "--nodes", "4", "--json")
    steps = {
        kind: json.loads(convoy("simulate", *arguments, "--batch-norm", kind).out)["points"][0]
        for kind in ("sync", "local")
    }
    assert steps["local"]["step_s"] < steps["sync"]["step_s"]
    refused = convoy("simulate", *arguments, "--average-every", "4")
    assert refused.status == 2
    assert "--average-every belongs to --strategy averaging" in refused.err
    both = json.loads(
        convoy("simulate", *arguments, "--strategy", "data,averaging", "--average-every", "4").out
    )
    assert [point["strategy"] for point in both["points"]] == ["data", "averaging"]
