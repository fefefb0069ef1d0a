"""How long the simulator takes for `data` on many ranks; more than a bound and it fails.

The network has 100 layers of 250,000 parameters: about ResNet-50's, in ten buckets or so.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from common import write
from convoy.cost.fabric import Fabric
from convoy.cost.layers import LayerSize, NetworkFacts
from convoy.cost.schedule import Compute
from convoy.cost.simulate import simulate
from convoy.strategies import Problem, Worker, make_strategy

RANKS = (16, 128, 1024)
LAYERS = 100
SAMPLES = 32
"""Of each rank."""
BOUND_S = 30.0
LAYER_S = {"forward": 1e-3, "backward": 2e-3}


def seconds(compute: Compute) -> float:
    """Every layer takes the same."""
    return LAYER_S.get(compute.phase, 0.0)


def measure(num_ranks: int) -> dict[str, Any]:
    """Plan, draw and play one step."""
    layers = tuple(
        LayerSize(name=f"layer{i}", parameters=(250_000,), activations=1000) for i in range(LAYERS)
    )
    network = NetworkFacts(num_parameters=250_000 * LAYERS, num_buffers=0, layers=layers)
    workers = tuple(Worker(index=i, machine=f"m{i}", device="cpu") for i in range(num_ranks))
    problem = Problem(batch_size=SAMPLES * num_ranks, workers=workers, network=network)
    hosts = tuple(range(num_ranks))
    every = dict.fromkeys(hosts, 1.25e9)
    fabric = Fabric(hosts=hosts, up=every, down=every, latency_s=5e-5)
    strategy = make_strategy("data", {})

    started = time.perf_counter()
    schedule = strategy.schedule(strategy.plan(problem), 0)
    drawn = time.perf_counter()
    played = simulate(schedule, seconds, fabric)
    ended = time.perf_counter()
    return {
        "ranks": num_ranks,
        "layers": LAYERS,
        "operations": len(schedule),
        "planning s": drawn - started,
        "playing s": ended - drawn,
        "in all s": ended - started,
        "step ms": played.step_s * 1e3,
    }


def main() -> None:
    """Time all sizes."""
    rows = [measure(num_ranks) for num_ranks in RANKS]
    about = (
        f"One step of `data`: planned, drawn as a schedule and played, on up to {RANKS[-1]} ranks "
        f"with {LAYERS} layers. Bound: {BOUND_S:.0f} s."
    )
    write("simulator", rows, about=about)
    if rows[-1]["in all s"] > BOUND_S:
        sys.exit(f"{rows[-1]['in all s']:.1f} s is more than {BOUND_S:.0f} s")


if __name__ == "__main__":
    main()
