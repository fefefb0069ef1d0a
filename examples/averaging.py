"""How often to average: the bytes sent and the accuracy reached for several H.

    .venv/bin/python examples/averaging.py

`data` sums gradients every step; `averaging` lets each rank train alone and averages parameters
every H steps, 'end' meaning once, when training ends. docs/strategies.md has the mathematics.
"""

from __future__ import annotations

from typing import Any

import convoy

WAYS: tuple[dict[str, Any], ...] = (
    {"strategy": "data"},
    {"strategy": "averaging", "average_every": 4},
    {"strategy": "averaging", "average_every": 32},
    {"strategy": "averaging", "average_every": 32, "sync_first": 23},
    {"strategy": "averaging", "average_every": "end"},
)


def main() -> None:
    """Train the same network from the same seed in every way, one after the other."""
    print(f"{'way':<52} {'bytes/step':>10} {'images/s':>9} {'right':>6}")
    for way in WAYS:
        result = convoy.train(
            network="chavan:3-64-128-10", dataset="digits", workers=2, epochs=5, lr=0.02, **way
        )
        assert result is not None, "only ranks that torchrun starts return nothing"
        name = " ".join(f"{key}={value}" for key, value in way.items())
        print(
            f"{name:<52} {result.sent_bytes_per_step:>10,.0f} {result.images_per_s:>9,.0f} "
            f"{result.test_accuracy:>6.1%}"
        )


if __name__ == "__main__":
    main()
