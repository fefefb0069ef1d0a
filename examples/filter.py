"""What travels when only the convolutions are distributed, in several ways.

    .venv/bin/python examples/filter.py

docs/strategies.md has the mathematics and says when it pays: not with two ranks of one small
machine, as here, but where a network has many filters and links are fast.
"""

from __future__ import annotations

from typing import Any

import convoy

WAYS: tuple[dict[str, Any], ...] = (
    {"strategy": "single"},
    {"strategy": "filter"},
    {"strategy": "filter", "fuse": "no"},
    {"strategy": "filter", "resident": "no"},
    {"strategy": "filter", "wire": "bf16"},
)


def main() -> None:
    """Train the same network from the same seed in every way, one after the other."""
    print(f"{'way':<40} {'bytes/step':>10} {'images/s':>9} {'right':>6}")
    for way in WAYS:
        result = convoy.train(
            network="chavan:3-64-128-10", dataset="digits", workers=2, epochs=5, lr=0.02, **way
        )
        assert result is not None, "only ranks that torchrun starts return nothing"
        name = " ".join(f"{key}={value}" for key, value in way.items())
        print(
            f"{name:<40} {result.sent_bytes_per_step:>10,.0f} {result.images_per_s:>9,.0f} "
            f"{result.test_accuracy:>6.1%}"
        )


if __name__ == "__main__":
    main()
