"""What ways cost, worked out by hand."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from convoy.errors import UnknownNameError, UsageError
from convoy.split.costs import (
    FRAMING,
    Candidate,
    Curve,
    Link,
    Wish,
    choices,
    cost,
    rank,
)

LINK = Link(
    bandwidth_bit_s=8e6 * FRAMING,
    latency_s=0.01,
    overhead_s=0.002,
    edge_request_s=0.001,
    cloud_request_s=0.0015,
    overhead_bytes=0,
)
"""A megabyte a second."""


def per_image(value: float) -> Curve:
    return Curve(sizes=(1,), values=(value,))


def candidate(name: str = "pool2", **changes: Any) -> Candidate:
    values: dict[str, Any] = {
        "name": name,
        "kind": "split",
        "cut": "pool2",
        "edge_s": per_image(0.001),
        "sent_bytes": per_image(4000.0),
        "cloud_s": per_image(0.0005),
    }
    return Candidate(**(values | changes))


LOCAL = candidate("local", kind="local", cut=None, edge_s=per_image(0.01))


def test_a_curve_is_linear_between_and_beyond_two_sizes() -> None:
    curve = Curve(sizes=(1, 101), values=(2.0, 102.0))
    assert [curve(1), curve(51), curve(201)] == [2.0, 52.0, 202.0]
    assert Curve(sizes=(4,), values=(2.0,))(2) == 1.0
    assert curve.times(2)(51) == 104.0
    assert Curve(sizes=(1, 2), values=(1.0, 3.0))(1) >= 0


def test_one_batch_takes_the_sum() -> None:
    found = cost(candidate(answer_bytes=per_image(10.0)), LINK, 10)
    assert found.transfer_s == pytest.approx(0.04 + 0.0001 + 0.02 + 0.002)
    assert found.latency_s == pytest.approx(0.01 + 0.0621 + 0.005)
    assert cost(candidate(), LINK, 10).latency_s == pytest.approx(0.01 + 0.062 + 0.005)
    assert found.synchronous_images_per_s == pytest.approx(10 / 0.0771)


def test_batches_one_after_another_take_the_slowest_part() -> None:
    assert cost(candidate(), LINK, 10).images_per_s == pytest.approx(10 / 0.04)
    assert cost(candidate(), LINK, 10).bottleneck == "link"
    slow_edge = candidate(edge_s=per_image(0.1))
    assert cost(slow_edge, LINK, 10).images_per_s == pytest.approx(10 / 1.001)
    assert cost(slow_edge, LINK, 10).synchronous_images_per_s == pytest.approx(10 / 1.067)
    slow_cloud = candidate(cloud_s=per_image(0.1))
    assert cost(slow_cloud, LINK, 10).images_per_s == pytest.approx(10 / 1.0015)


def test_who_waits_is_slow_at_first() -> None:
    rested = candidate(edge_rest_s=0.003, cloud_rest_s=0.004)
    assert cost(rested, LINK, 10).latency_s == pytest.approx(0.01 + 0.062 + 0.005 + 0.007)
    assert cost(rested, LINK, 10).images_per_s == cost(candidate(), LINK, 10).images_per_s


def test_a_cloud_that_has_much_to_do_computes_what_waits_together() -> None:
    together = Curve(sizes=(1, 16), values=(0.02, 0.08))  # a quarter of the time, each
    found = cost(candidate(cloud_s=together), replace(LINK, bandwidth_bit_s=1e12), 1)
    assert found.bottleneck == "cloud"
    assert found.images_per_s == pytest.approx(1 / (0.08 / 16 + LINK.cloud_request_s))
    assert found.cloud_s == 0.02  # of one that is by itself
    assert found.latency_s == pytest.approx(0.001 + 0.02 + 0.002 + 0.02, rel=0.001)


def test_what_stays_here_needs_no_link() -> None:
    slow = Link(bandwidth_bit_s=1.0, latency_s=100.0)
    assert cost(LOCAL, slow, 10).latency_s == pytest.approx(0.1)
    assert cost(LOCAL, slow, 10).images_per_s == pytest.approx(100)
    assert cost(LOCAL, slow, 10).sent_bytes == 0


def test_each_objective_has_its_order() -> None:
    thin = candidate("thin", edge_s=per_image(0.02), sent_bytes=per_image(10.0), depth=0.9)
    wide = candidate("wide", sent_bytes=per_image(5000.0), depth=0.5)
    picture = candidate("picture", kind="picture", cut=None, edge_s=per_image(0.0))
    ways = [picture, wide, thin, LOCAL]

    def order(objective: str) -> list[str]:
        return [c.name for c in rank(ways, LINK, Wish(objective=objective, count=10)).best]

    assert order("latency") == ["picture", "wide", "local", "thin"]
    assert order("throughput") == ["picture", "wide", "local", "thin"]
    assert order("bytes") == ["local", "thin", "picture", "wide"]
    assert order("privacy") == ["local", "thin", "wide"]
    refused = rank(ways, LINK, Wish(objective="privacy", count=10)).refused
    assert [(c.name, why) for c, why in refused] == [("picture", "it would send the picture")]
    with pytest.raises(UnknownNameError, match="objective 'latancy'"):
        Wish(objective="latancy")


def test_what_is_too_inaccurate_is_not_chosen() -> None:
    worse = candidate("worse", accuracy=0.785, sent_bytes=per_image(1.0))
    good = candidate("good", accuracy=0.79)
    wish = Wish(accuracy=0.80)
    found = rank([worse, good, candidate("unknown")], LINK, wish)
    assert [c.name for c in found.best] == ["good", "unknown"]
    assert [(c.name, reason) for c, reason in found.refused] == [
        ("worse", "1.5 points less accurate than the full network")
    ]
    within_2 = Wish(accuracy=0.80, accuracy_within=2)
    assert rank([worse, good], LINK, within_2).best[0] is worse
    said = rank([worse], LINK, wish).nothing()
    assert said.startswith("nothing will do (worse: 1.5 points less accurate")


def test_what_is_too_late_or_too_slow_is_not_chosen() -> None:
    way = candidate()  # 77 ms a batch of ten, 250 images/s; LOCAL 100 ms, and 100 images/s
    late = rank([way, LOCAL], LINK, Wish(count=10, deadline_s=0.09))
    assert [c.name for c in late.best] == ["local"]
    assert late.refused[0][1] == "0.077 s until the answer, of a deadline of 0.09"
    assert not rank([way], LINK, Wish(count=10, deadline_s=0.1)).refused
    slow = Wish(objective="bytes", count=10, images_per_s=150)
    assert [c.name for c in rank([way, LOCAL], LINK, slow).best] == ["pool2"]
    assert rank([LOCAL], LINK, slow).refused[0][1] == "100 images/s, of 150"
    fast = Wish(count=10, images_per_s=20_000)
    assert rank([LOCAL], LINK, fast).refused[0][1] == "100 images/s, of 20,000"
    with pytest.raises(UsageError, match="a deadline of 0 s: expected more"):
        Wish(deadline_s=0)
    with pytest.raises(UsageError, match="expected a rate to keep up with"):
        Wish(images_per_s=-1)


def test_where_nothing_will_do_there_is_no_choice() -> None:
    wish = Wish(count=10, images_per_s=150)
    found = choices([LOCAL, candidate(sent_bytes=per_image(20000.0))], LINK, wish, [1e6, 1e9])
    assert [bandwidth for bandwidth, _ in found] == [1e9]


def test_the_choice_changes_with_the_link() -> None:
    ways = [LOCAL, candidate(sent_bytes=per_image(20000.0))]
    wish = Wish(objective="throughput", count=10)
    found = choices(ways, LINK, wish, [1e6, 1e9])
    assert [c.name for _, c in found] == ["local", "pool2"]


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, float("nan")])
def test_an_uplink_of_nothing(bandwidth: float) -> None:
    with pytest.raises(UsageError, match="carries nothing: expected a bandwidth above 0"):
        Link(bandwidth_bit_s=bandwidth, latency_s=0)


def test_the_edge_client_needs_no_torch_for_it() -> None:
    code = "import sys, convoy.split.costs; print({'torch', 'onnx', 'ray'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
