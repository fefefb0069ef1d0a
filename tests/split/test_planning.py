"""`convoy split plan`: what it says of machines and links, and whole, of a network on digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from convoy.api.splitting import _trained_narrow, plan_split
from convoy.cluster import Cluster, Machine, Network, parse_cluster
from convoy.errors import ClusterError, UnknownNameError, UsageError
from convoy.report.split import draw_split
from convoy.split.costs import CLIENT_BATCH_S, CLIENT_IMAGE_S, Candidate, Curve, Link, Wish
from convoy.split.making.candidates import _as_then
from convoy.split.planning import Place, SplitPlan, at_places, between_places, link_between, place

from .graphs import make_run, straight

CLUSTER = parse_cluster(
    """
    [[machine]]
    name = "tower"
    cpus = 4
    [[machine]]
    name = "camera"
    cpus = 0.25
    [[machine]]
    name = "wish"
    like = "camera"
    speed = 0.5
    [[link]]
    between = ["camera", "tower"]
    bandwidth = "10 Mbit/s"
    latency = "5 ms"
    """
)


def per_image(value: float) -> Curve:
    return Curve(sizes=(1,), values=(value,))


def test_machines_are_as_fast_as_their_cores() -> None:
    assert place("camera", "--edge", CLUSTER).factor == 5  # 2 of 10 ms, of a quota of 2.5
    assert place("tower", "--edge", CLUSTER).factor == 1
    assert place("wish", "--edge", CLUSTER).factor == 10
    assert place("0.5", "--edge", None).factor == pytest.approx(10 / 4.5)
    assert place("0.01", "--edge", None).factor == pytest.approx(200)
    with pytest.raises(ClusterError, match="unknown machine 'camara'. Nearest: camera"):
        place("camara", "--edge", CLUSTER)
    for wrong in ("camera", "0", "-1", "inf"):
        with pytest.raises(UsageError, match=f"--edge {wrong}: expected cores above 0"):
            place(wrong, "--edge", None)


def test_the_link_is_the_files_unless_told_otherwise() -> None:
    found = link_between("camera", "tower", CLUSTER, None, None)
    assert (found.bandwidth_bit_s, found.latency_s) == (1e7, 0.005)
    found = link_between("camera", "tower", CLUSTER, "1 Gbit/s", None)
    assert (found.bandwidth_bit_s, found.latency_s) == (1e9, 0.005)
    assert link_between("1", "1", None, "1 Mbit/s", "2 ms").latency_s == 0.002


@pytest.mark.parametrize("bandwidth", ["0", "0 Mbit/s"])
def test_an_uplink_of_nothing(bandwidth: str) -> None:
    with pytest.raises(UsageError, match=r"--bandwidth: found '0.*a number above 0.*on the edge"):
        link_between("1", "1", None, bandwidth, None)


def test_a_link_has_to_be_given() -> None:
    with pytest.raises(UsageError, match="say what joins edge and cloud"):
        link_between("1", "1", None, None, None)


def test_a_slow_edge_is_slow_on_the_edge_only() -> None:
    candidate = Candidate(name="c", kind="split", edge_s=per_image(1.0), cloud_s=per_image(2.0))
    found = at_places(candidate, Place(name="a", cores=0.25), Place(name="b", cores=2))
    client_s = CLIENT_BATCH_S + CLIENT_IMAGE_S
    assert found.edge_s(1) == pytest.approx(5 * (1.0 + client_s))
    assert found.cloud_s(1) == 2.0


def test_a_request_takes_slow_machines_longer() -> None:
    own = {"edge_request_s": 0.001, "cloud_request_s": 0.002}
    link = Link(bandwidth_bit_s=1e6, latency_s=0.0, overhead_s=0.0015, **own)
    found = between_places(link, Place(name="a", cores=0.25), Place(name="b", cores=0.5))
    assert found.edge_request_s == pytest.approx(0.005)
    assert found.cloud_request_s == pytest.approx(0.002 * 10 / 4.5)
    both_s = found.edge_request_s + found.cloud_request_s
    assert found.overhead_s == pytest.approx(both_s / 2)  # half of it is done meanwhile


def made_plan(**changes: Any) -> SplitPlan:
    """A cut that pays over fast links and the edge alone that pays over slow ones."""
    ways = (
        Candidate(name="edge", kind="local", edge_s=per_image(0.01), accuracy=0.8),
        Candidate(
            name="pool2/uint8",
            kind="split",
            cut="pool2",
            codec="uint8",
            edge_s=per_image(0.001),
            sent_bytes=per_image(10000.0),
            cloud_s=per_image(0.001),
            accuracy=0.795,
            depth=0.5,
        ),
        Candidate(
            name="picture/jpeg",
            kind="picture",
            codec="jpeg",
            sent_bytes=per_image(100.0),
            accuracy=0.7,
        ),
    )
    values: dict[str, Any] = {
        "network": "net",
        "dataset": "digits",
        "edge": Place(name="camera", cores=1),
        "cloud": Place(name="tower", cores=1),
        "link": Link(bandwidth_bit_s=1e9, latency_s=0.0),
        "wish": Wish(objective="throughput", count=10, accuracy=0.8),
        "candidates": ways,
        "judged_images": 100,
    }
    return SplitPlan(**(values | changes))


def test_the_choice_in_words() -> None:
    said = made_plan().verdict()
    assert said.startswith("Cut: pool2/uint8. ")
    assert "all on the edge gives 100 images/s" in said
    assert "up to 8.9 Mbit/s edge, from there pool2/uint8" in said
    slow = made_plan(link=Link(bandwidth_bit_s=1e6, latency_s=0.0)).verdict()
    assert slow.startswith("Compute all on the edge. 100 images/s")
    strict = made_plan(wish=Wish(count=10, accuracy=0.99))
    assert strict.verdict().startswith("Nothing will do (picture/jpeg: 29.0 points less accurate")
    assert (strict.to_dict()["chosen"], strict.to_dict()["over_bandwidth"]) == (None, [])


def test_the_choice_keeps_up_and_is_in_time() -> None:
    slow_link = Link(bandwidth_bit_s=1e7, latency_s=0.5)
    said = made_plan(link=slow_link).verdict()
    assert "`convoy split run` needs --deadline 1.4 for that." in said  # (1 + 0.1) / 0.8
    wish = Wish(objective="throughput", count=10, accuracy=0.8, deadline_s=0.4)
    found = made_plan(link=slow_link, wish=wish)
    assert found.verdict().startswith("Compute all on the edge.")
    refused = {row["name"]: row["refused"] for row in found.rows()}
    assert refused["pool2/uint8"].endswith("until the answer, of a deadline of 0.4")
    keep_up = Wish(objective="bytes", count=10, accuracy=0.8, images_per_s=105)
    found = made_plan(wish=keep_up)
    assert found.verdict().startswith("Cut: pool2/uint8.")
    assert "Below 8.9 Mbit/s nothing will do." in found.verdict()
    assert found.to_dict()["over_bandwidth"][0]["bandwidth_bit_s"] > 8e6


def test_a_rate_that_only_a_very_fast_link_allows() -> None:
    wish = Wish(objective="throughput", count=10, accuracy=0.8, images_per_s=50_000)
    fast = made_plan(
        link=Link(bandwidth_bit_s=1e12, latency_s=0.0, edge_request_s=0.0, cloud_request_s=0.0),
        wish=wish,
        candidates=(Candidate(name="picture/uint8", kind="picture", sent_bytes=per_image(3072.0)),),
    )
    assert "From 1 Mbit/s to 1 Gbit/s nothing will do." in fast.verdict()


def test_rows_are_the_best_first_then_the_inaccurate() -> None:
    rows = made_plan().to_dict()["rows"]
    assert [(row["name"], row["refused"]) for row in rows] == [
        ("pool2/uint8", None),
        ("edge", None),
        ("picture/jpeg", "10.0 points less accurate than the full network"),
    ]


def test_it_is_drawn(tmp_path: Path) -> None:
    draw_split(made_plan().to_dict(), tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    draw_split(made_plan(wish=Wish(count=10, accuracy=0.99)).to_dict(), tmp_path / "none.png")
    with pytest.raises(UsageError, match="is no folder"):
        draw_split(made_plan().to_dict(), tmp_path / "nowhere" / "plan.png")


def test_a_run_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "chavan:3-8-12-10")
    make_run(run / "narrow" / "pool1" / "f4", "chavan:3-4-12-10")
    told: list[str] = []
    plan = plan_split(
        run,
        edge="0.25",
        cloud="1",
        bandwidth="10 Mbit/s",
        batch_size=10,
        cuts=["pool1"],
        accuracy_within=100,
        images=50,
        say=told.append,
    )
    document = json.loads(json.dumps(plan.to_dict()))
    names = {row["name"]: row for row in document["rows"]}
    codecs = ("float32", "float16", "uint8", "uint8+zstd", "uint4+zstd")
    assert {f"{place}/{codec}" for place in ("pool1", "pool1:4") for codec in codecs} <= set(names)
    assert {f"picture/{codec}" for codec in ("float32", "uint8", "jpeg", "mosaic")} <= set(names)
    assert {"edge", "edge pool1:4"} <= set(names)
    assert names["pool1/float32"]["sent_bytes"] == 10 * 4 * 8 * 3 * 3
    assert names["pool1/float32"]["accuracy"] == names["edge"]["accuracy"]
    assert document["judged_images"] == 50
    assert told[-1] == "chavan:3-4-12-10: cut at pool1"
    with pytest.raises(UnknownNameError, match="Nearest: pool1"):
        plan_split(run, edge="1", cloud="1", bandwidth="1 Mbit/s", cuts=["pol1"])


def test_the_more_accurate_of_two_trainings_is_taken(tmp_path: Path) -> None:
    accuracies = {"pool1": {4: 0.7, 8: 0.9}, "pool1-from-scratch": {4: 0.8, 8: 0.8, 16: 0.9}}
    for cut, of_cut in accuracies.items():
        for filters, accuracy in of_cut.items():
            folder = tmp_path / "narrow" / cut / f"f{filters}"
            folder.mkdir(parents=True)
            (folder / "model.safetensors").touch()
            (folder / "result.json").write_text(json.dumps({"test_accuracy": accuracy}))
    (tmp_path / "narrow" / "pool1" / "f32").mkdir()  # not trained yet
    found = _trained_narrow(tmp_path)
    assert list(found) == [("pool1", 4), ("pool1", 8), ("pool1", 16)]
    assert [folder.parent.name for folder in found.values()] == [
        "pool1-from-scratch",
        "pool1",
        "pool1-from-scratch",
    ]


def test_a_file_from_elsewhere(tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("Neg", ["a"], ["b"]),
        onnx.helper.make_node("Relu", ["b"], ["y"]),
    ]
    onnx.save(straight(nodes), str(tmp_path / "their.onnx"))
    plan = plan_split(tmp_path / "their.onnx", edge="1", cloud="1", bandwidth="1 Mbit/s")
    assert plan.judged_images is None
    assert {c.name for c in plan.candidates} == {
        "edge", "picture/float32", "b/float32", "b/float16"
    }  # fmt: skip


def test_clusters_describe_more_than_two(tmp_path: Path) -> None:
    cluster = Cluster(machines=(Machine(name="a"), Machine(name="b")), network=Network())
    assert link_between("a", "b", cluster, None, None).bandwidth_bit_s == 1e9


def test_what_was_timed_beside_something_else_is_set_in_proportion() -> None:
    """By what the whole network took beside it, and had taken before."""
    found = Curve(sizes=(1, 8), values=(2.0, 20.0))
    now, then = (Curve(sizes=(1, 8), values=values) for values in ((4.0, 30.0), (2.0, 45.0)))
    assert _as_then(found, now, then) == Curve(sizes=(1, 8), values=(1.0, 30.0))
