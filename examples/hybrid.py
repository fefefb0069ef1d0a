"""When is it cheaper to move maps than gradients? `data` and `hybrid` on AlexNet, by batch size.

    .venv/bin/python examples/hybrid.py

Nothing is trained: schedules say what would be sent, and plans what would be held. Gradients
weigh the same whatever the batch, maps grow with it; `convoy plan` adds what your machines and
links make of it. docs/strategies.md has the formulas.
"""

from __future__ import annotations

from convoy.cost.layers import facts_of
from convoy.cost.schedule import sent_by_rank
from convoy.networks import build
from convoy.strategies import Problem, Worker, make_strategy

RANKS = 4
IMAGES = (3, 120, 160)


def main() -> None:
    """Print a row per batch size."""
    network = facts_of(build("alexnet", input_shape=IMAGES, num_classes=1000), IMAGES)
    workers = tuple(Worker(index=i, machine=f"m{i}", device="cpu") for i in range(RANKS))
    print(f"alexnet, {network.num_parameters / 1e6:.1f} million parameters, {RANKS} ranks")
    print(f"{'batch':>6} {'data':>9} {'hybrid':>9}   split dense layers")
    for batch_size in (16, 64, 256, 1024, 4096):
        problem = Problem(batch_size=batch_size, workers=workers, network=network)
        sent = []
        for name in ("data", "hybrid"):
            strategy = make_strategy(name, {})
            plan = strategy.plan(problem)
            sent.append(sum(sent_by_rank(strategy.schedule(plan, 0), RANKS)) / 1e6)
        split = ", ".join(layer.name for layer in getattr(plan, "layers", ()))
        print(f"{batch_size:>6} {sent[0]:>6,.0f} MB {sent[1]:>6,.0f} MB   {split}")


if __name__ == "__main__":
    main()
