"""Trains asynchronously on one node of a Ray cluster, which gets a second in the middle."""

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
STORE = 80 * 1024**2


class Watch:
    """Adds a node after the tenth step."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.added = cluster, False
        self.said: list[str] = []

    def planned(self, plan: Any) -> None:
        """Nothing."""

    def stepped(self, step: Any, num_steps: int) -> None:
        """A machine comes; once it works, the run need not be slow any more."""
        if step.step >= 9 and not self.added:
            self.added = True
            self.cluster.add_node(num_cpus=1, object_store_memory=STORE, node_name="second")
        if any(row["machine"] == "second" for row in step.ranks):
            HURRY.touch()

    def evaluated(self, step: int, accuracy: float, loss: float) -> None:
        """Nothing."""

    def say(self, text: str, level: str = "info") -> None:
        """Note it."""
        self.said.append(text)


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head | {"node_name": "head"})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    watch = Watch(cluster)
    try:
        result = convoy.train(dataset=ours.paced(HURRY), cluster="ray", observer=watch, **options)
        assert result is not None
        answer = {"result": result.to_dict(), "said": watch.said}
        Path("answer.json").write_text(json.dumps(answer, default=str))
    finally:
        ray.shutdown()
        cluster.shutdown()
