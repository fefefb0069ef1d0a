"""What replicas at their own pace reach, and how stale their gradients are, in several ways.

    .venv/bin/python examples/downpour.py

`data` waits for the slower rank at every step. With `downpour` each replica fetches weights,
computes a batch and pushes its gradient, and nobody waits; `behind` is how many updates of others
came between, on average. docs/strategies.md has the mathematics and says when it pays: not with two
ranks of one small machine, as here, but where machines differ, or are slower at times.
"""

from __future__ import annotations

from typing import Any

import convoy

WAYS: tuple[dict[str, Any], ...] = (
    {"strategy": "data", "batch_size": 128, "optimizer": "adagrad"},
    {"strategy": "downpour"},
    {"strategy": "downpour", "fetch_every": 4, "push_every": 4},
)


def main() -> None:
    """Train the same network from the same seed in every way, one after the other."""
    print(f"{'way':<52} {'bytes/step':>10} {'images/s':>9} {'behind':>6} {'right':>6}")
    for way in WAYS:
        given: dict[str, Any] = {"batch_size": 64} | way
        result = convoy.train(
            network="chavan:3-64-128-10", dataset="digits", workers=2, epochs=4, lr=0.02, **given
        )
        assert result is not None, "only ranks that torchrun starts return nothing"
        name = " ".join(f"{key}={value}" for key, value in way.items())
        behind = result.servers["staleness"]["mean"] if result.servers else 0.0
        print(
            f"{name:<52} {result.sent_bytes_per_step:>10,.0f} {result.images_per_s:>9,.0f} "
            f"{behind:>6.2f} {result.test_accuracy:>6.1%}"
        )


if __name__ == "__main__":
    main()
