"""Trains over nodes of a Ray cluster, one of which goes down and one of which comes in the middle.

A crew first, and asynchronously then: a Ray, and a process for a rank, are started once for both.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harbour
import ours
import ray
from ray.cluster_utils import Cluster

import convoy
from convoy.runtime import run

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 1024**2}
NOTICE_S = {  # notice in a second, and not in fifteen, that a node is gone
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 2,
}


class Watch:
    """Does something to the cluster after the tenth step; a run is slow until `hurry` is there."""

    def __init__(self, deed: Callable[[], object], hurry: Path) -> None:
        self.deed, self.done, self.hurry = deed, False, hurry
        self.said: list[str] = []

    def planned(self, plan: Any) -> None:
        """Nothing."""

    def stepped(self, step: Any, num_steps: int) -> None:
        """The deed; once a machine that has come works, the run need not be slow any more."""
        if step.step >= 9 and not self.done:
            self.done = True
            self.deed()
        if any(row["machine"] == "third" for row in step.ranks):
            self.hurry.touch()

    def evaluated(self, step: int, accuracy: float, loss: float) -> None:
        """Nothing."""

    def say(self, text: str, level: str = "info") -> None:
        """Note it; the run need not be slow once it is clear who goes on."""
        self.said.append(text)
        if "itself is gone" in text or "could not be started again" in text:
            self.hurry.touch()


def train(name: str, deed: Callable[[], object], options: dict[str, Any]) -> dict[str, Any]:
    """One run, in the folder `name`."""
    hurry = Path(f"hurry-{name}").absolute()
    watch = Watch(deed, hurry)
    data, where = ours.paced(hurry), {"cluster": "ray", "out": name}
    result = convoy.train(dataset=data, observer=watch, **where, **options)
    assert result is not None
    return {"result": result.to_dict(), "said": watch.said}


if __name__ == "__main__":
    leaving, coming = json.loads(sys.argv[1])
    head = {"include_dashboard": False, "node_name": "head", "_system_config": NOTICE_S}
    cluster = Cluster(initialize_head=True, head_node_args=NODE | head)
    second = cluster.add_node(**NODE, node_name="second")
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    run.pool = harbour.idle  # type: ignore[attr-defined]
    try:
        answers = [
            train("leaving", lambda: cluster.remove_node(second, allow_graceful=False), leaving),
            train("coming", lambda: cluster.add_node(**NODE, node_name="third"), coming),
        ]
        Path("answer.json").write_text(json.dumps(answers, default=str))
    finally:
        ray.shutdown()
        cluster.shutdown()
