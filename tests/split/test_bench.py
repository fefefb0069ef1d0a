"""What ways between emulated machines come to, and what was foreseen of them."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convoy.api.splitting import plan_split
from convoy.errors import UnknownNameError, UsageError
from convoy.split import bench
from convoy.split.client import AsyncClient, Options
from convoy.split.costs import (
    CLIENT_BATCH_S,
    CLIENT_IMAGE_S,
    CLOUD_REQUEST_S,
    EDGE_REQUEST_S,
    LOCAL,
    OVERHEAD_S,
    PICTURE,
    SPLIT,
    TIE,
    Candidate,
    Curve,
)
from convoy.split.foreseen import candidates_of_folder
from convoy.split.manifest import ModelFile, to_json
from convoy.split.measuring import measure

from . import toy
from .client.played_cloud import PlayedCloud


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    toy.export(folder)
    return folder


def test_candidates_are_the_clients_ways(exported: Path) -> None:
    found = {c.name: c for c in candidates_of_folder(exported, toy.pictures(10), 4)}
    with_client = AsyncClient(exported, None, Options(accuracy_within=100.0))
    assert list(found) == [way.name for way in with_client.ways.all]
    assert (found["edge"].kind, found["edge"].sent_bytes(4)) == (LOCAL, 0)
    uint8 = found["picture/uint8"]
    assert (uint8.kind, uint8.sent_bytes(1), uint8.sent_bytes(4)) == (PICTURE, 192, 768)
    cut = found["relu/float32"]
    assert (cut.kind, cut.cut, cut.codec) == (SPLIT, "relu", "float32")
    assert cut.sent_bytes(4) == 4 * 1024
    assert all(c.edge_s(4) > 0 for c in found.values())
    assert all((c.cloud_s(4) > 0) == (c.kind != LOCAL) for c in found.values())
    assert cut.answer_bytes(4) == 4 * 5 * 4


def test_a_plan_of_what_was_exported(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no pictures to time codecs with"):
        plan_split(exported, edge="1", cloud="1", bandwidth="1 Mbit/s")
    manifest = toy.export(tmp_path)
    np.save(tmp_path / "samples.npy", toy.pictures(5))
    digest = hashlib.sha256((tmp_path / "samples.npy").read_bytes()).hexdigest()
    samples = ModelFile(file="samples.npy", sha256=digest)
    (tmp_path / "manifest.json").write_text(to_json(replace(manifest, samples=samples)))
    exported = tmp_path
    between: dict[str, Any] = {"edge": "1", "cloud": "1", "bandwidth": "1 Mbit/s"}
    with pytest.raises(UnknownNameError, match="unknown cut of .*'rilu'. Nearest: relu"):
        plan_split(exported, cuts=["rilu"], **between)
    with pytest.raises(UsageError, match="no network, data set or --no-accuracy goes with it"):
        plan_split(exported, dataset="digits", **between)
    plan = plan_split(exported, batch_size=4, cuts=["relu"], **between)
    found = plan.to_dict()
    ways = AsyncClient(exported, None, Options(accuracy_within=100.0)).ways
    assert {row["name"] for row in found["rows"]} == {way.name for way in ways.all}
    assert found["accuracy"] == ways.manifest.variants[0].accuracy
    assert {row["name"]: row["accuracy"] for row in found["rows"]} == {
        way.name: way.accuracy for way in ways.all
    }


@pytest.mark.parametrize("mode", ["synchronous", "pipelined"])
def test_a_way_is_measured(exported: Path, mode: str) -> None:
    cloud = PlayedCloud(exported)

    async def run() -> Any:
        async with (
            cloud.up() as server,
            AsyncClient(
                exported, server, way="picture/uint8", batch_size=5, deadline_s=30, linger_s=30
            ) as client,
        ):
            return await measure(client, toy.pictures(7), mode, 0.5)

    found = asyncio.run(asyncio.wait_for(run(), 60))
    assert (found.way, found.batch_size, found.mode) == ("picture/uint8", 5, mode)
    assert found.images % 5 == 0
    assert found.images >= 20
    assert found.bytes_per_image == 192
    assert found.fallbacks == 0
    assert 0 < found.images_per_s < 1e5
    if mode == "synchronous":  # one after another, and half of them take the median or more
        assert 0 < found.images_per_s <= 2 * 5 / found.latency_s


SETTING = bench.Setting(bandwidth_bit_s=1e6, edge_cpus=0.25, batch_size=10, mode="pipelined")
LINE = Curve(sizes=(10,), values=(0.02,))


def test_what_was_foreseen_is_of_that_edge_and_link() -> None:
    candidate = Candidate(
        name="cut", kind=SPLIT, edge_s=LINE, cloud_s=LINE, sent_bytes=LINE.times(1e4)
    )
    found = bench._beside(candidate, SETTING)
    edge_s = 5 * (0.02 + CLIENT_BATCH_S + 10 * CLIENT_IMAGE_S)  # a quarter of a core
    pace = 10 / (edge_s + 5 * EDGE_REQUEST_S)
    assert found["foreseen_images_per_s"] == pytest.approx(pace, rel=0.001)
    both_s = EDGE_REQUEST_S + CLOUD_REQUEST_S
    overhead_s = OVERHEAD_S * (5 * EDGE_REQUEST_S + CLOUD_REQUEST_S) / both_s
    there_s = (200 + 400) * 1514 / 1448 * 8 / 1e6
    back_s = 400 * 1514 / 1448 * 8 / 1e6
    assert found["foreseen_latency_s"] == pytest.approx(
        edge_s + 0.02 + there_s + back_s + 1e-4 + overhead_s, rel=0.001
    )
    expected = 10 / pace + TIE * found["foreseen_latency_s"]  # as the plan's --for
    assert found["foreseen_measure"] == pytest.approx(expected, rel=0.001)
    one_by_one = bench._beside(candidate, replace(SETTING, mode="synchronous"))
    assert one_by_one["foreseen_measure"] == found["foreseen_latency_s"]
    alone = Candidate(name="edge", kind=LOCAL, edge_s=LINE)
    assert bench._beside(alone, SETTING)["foreseen_images_per_s"] == pytest.approx(10 / edge_s)


def test_the_plans_choice_is_set_beside_the_best() -> None:
    def row(way: str, measured: float, foreseen: float, link: float = 1e6) -> dict[str, Any]:
        key = {"bandwidth_bit_s": link, "edge_cpus": 1.0, "batch_size": 1, "mode": "pipelined"}
        return key | {
            "way": way,
            "images_per_s": measured,
            "foreseen_images_per_s": foreseen,
            "foreseen_measure": 1 / foreseen,
        }

    rows = [row("a", 100, 110), row("b", 80, 120), row("a", 50, 60, 2e6), row("b", 40, 44, 2e6)]
    for way, lost in (("a", 0.0), ("b", 0.01)):
        for measured in rows:
            if measured["way"] == way:
                measured["accuracy"] = 0.8 - lost
    slow, fast = bench.judged(rows, 0.8)
    assert (slow["best"], slow["chosen"], slow["chosen_of_best"]) == ("a", "b", 0.8)
    assert slow["mean_error"] == pytest.approx((0.1 + 0.5) / 2)
    assert slow["largest_error"] == pytest.approx(0.5)
    assert (fast["best"], fast["chosen"], fast["chosen_of_best"]) == ("a", "a", 1.0)
    slow, _ = bench.judged(rows, 0.8, within=0.5)
    assert (slow["best"], slow["chosen"]) == ("a", "a")  # b is not accurate enough


def test_settings_of_one_lab_are_together() -> None:
    found = bench.settings_of([1e6, 1e7], [0.25, 1.0], [1, 100])
    assert len(found) == 16
    assert [s.edge_cpus for s in found] == [0.25] * 8 + [1.0] * 8
    assert str(found[0]) == "1 Mbit/s, edge 0.25, batch 1, pipelined"


def test_a_way_that_is_not_there_is_named_before_anything_is_built(exported: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown way 'pool9/uint8'"):
        bench.ways_of(exported, ["pool9/uint8"])
