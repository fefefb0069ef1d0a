"""From measuring to comparing, over real ranks: everything fits together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convoy.strategies import STRATEGIES

from .processes import Harbour


def test_measure_plan_train_compare(harbour: Harbour, tmp_path: Path) -> None:
    answer = harbour.whole_way(tmp_path)
    assert answer["devices"] == 2
    measured = json.loads((tmp_path / "profile.json").read_text())
    for varies in (*measured["devices"], *measured["links"], measured["all_reduce"]):
        assert len(varies["variation"]) == 10
        assert varies["variation"] == sorted(varies["variation"])
    assert all(device["average_s"] > 0 for device in measured["devices"])
    report = answer["report"]
    chosen = report["plans"][report["chosen"]]
    assert chosen["exact"]
    assert {plan["strategy"] for plan in report["plans"]} == set(STRATEGIES)
    assert all(sum(m["samples"] for m in plan["machines"]) == 32 for plan in report["plans"])
    assert report["advice"].startswith("Use ")

    given = answer["result"]
    assert given["strategy"] == chosen["strategy"]
    assert given["predicted_step_s"] == pytest.approx(chosen["step_s"])
    assert given["predicted_images_per_s"] == pytest.approx(32 / chosen["step_s"])
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["predicted_step_s"] == given["predicted_step_s"]
    assert [m["samples"] for m in plan["machines"]] == [m["samples"] for m in chosen["machines"]]

    # once measured, it is known
    assert answer["cached"] == 1
    assert sum("planning with the profile of" in text for text in answer["said"]) == 2

    rows = {row["label"]: row for row in answer["comparison"]["runs"]}
    singles = [label for label in rows if label.startswith("single")]
    assert rows.keys() - set(singles) == {"data", "data equal"}
    assert len(singles) == 2
    assert [m["samples"] for m in rows["data equal"]["machines"]] == [16, 16]
    for row in rows.values():
        assert len(row["measured_each_s"]) == 1
        assert row["error"] == pytest.approx(row["predicted_step_s"] / row["measured_step_s"] - 1)
        assert row["time_to_target_s"] > 0
    # the same start, the same samples, the same mathematics
    assert rows["data"]["test_accuracy"] == rows["data equal"]["test_accuracy"]
    # what was foreseen to travel, has
    assert rows["data"]["sent_bytes_per_step"] == rows["data"]["predicted_sent_bytes_per_step"]
    assert (tmp_path / "compared" / "comparison.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "compared" / "comparison.json").read_text())["repeats"] == 1
