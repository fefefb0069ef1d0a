"""What travels and how long a step takes when layers are divided into stages, in several ways.

    .venv/bin/python examples/pipeline.py

docs/strategies.md has the mathematics and says when it pays: not with two ranks of one small
machine, as here, but where a network has more parameters than maps, or more than one machine holds.
"""

from __future__ import annotations

from typing import Any

import convoy

WAYS: tuple[dict[str, Any], ...] = (
    {"strategy": "single"},
    {"strategy": "pipeline"},
    {"strategy": "pipeline", "micro_batches": 1},
    {"strategy": "pipeline", "micro_batches": 8},
    {"strategy": "pipeline", "micro_batches": 8, "pipeline_schedule": "gpipe"},
    {"strategy": "pipeline", "micro_batches": 4, "stages_per_device": 2},
)


def main() -> None:
    """Train the same network from the same seed in every way, one after the other."""
    print(f"{'way':<60} {'bytes/step':>10} {'images/s':>9} {'right':>6}")
    for way in WAYS:
        result = convoy.train(
            network="chavan:3-64-128-10", dataset="digits", workers=2, epochs=5, lr=0.02, **way
        )
        assert result is not None, "only ranks that torchrun starts return nothing"
        name = " ".join(f"{key}={value}" for key, value in way.items())
        print(
            f"{name:<60} {result.sent_bytes_per_step:>10,.0f} {result.images_per_s:>9,.0f} "
            f"{result.test_accuracy:>6.1%}"
        )


if __name__ == "__main__":
    main()
