"""Trains over two nodes of a Ray cluster, one of which goes down in the middle."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ours
import ray
from ray.cluster_utils import Cluster

import convoy

HURRY = Path("hurry").absolute()


class Watch:
    """Takes the second node away after the tenth step."""

    def __init__(self, cluster: Cluster, node: Any) -> None:
        self.cluster, self.node = cluster, node
        self.said: list[str] = []

    def planned(self, plan: Any) -> None:
        """Nothing."""

    def stepped(self, step: Any, num_steps: int) -> None:
        """The blow."""
        if self.node is not None and step.step >= 9:
            node, self.node = self.node, None
            self.cluster.remove_node(node, allow_graceful=False)

    def evaluated(self, step: int, accuracy: float, loss: float) -> None:
        """Nothing."""

    def say(self, text: str, level: str = "info") -> None:
        """Note it; the run need not be slow once it is clear who goes on."""
        self.said.append(text)
        if "itself is gone" in text or "could not be started again" in text:
            HURRY.touch()


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    store = 80 * 1024**2
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "include_dashboard": False,
            "object_store_memory": store,
            "node_name": "head",
            "_system_config": {  # notice in a second, and not in fifteen, that a node is gone
                "health_check_initial_delay_ms": 500,
                "health_check_period_ms": 500,
                "health_check_failure_threshold": 2,
            },
        },
    )
    node = cluster.add_node(num_cpus=1, object_store_memory=store, node_name="second")
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    watch = Watch(cluster, node)
    try:
        result = convoy.train(dataset=ours.paced(HURRY), cluster="ray", observer=watch, **options)
        assert result is not None
        answer = {"result": result.to_dict(), "said": watch.said}
        Path("answer.json").write_text(json.dumps(answer, default=str))
    finally:
        ray.shutdown()
        cluster.shutdown()
