"""What collectives take besides the way of their bytes."""

from __future__ import annotations

from dataclasses import dataclass

from convoy.cost.curve import Curve


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """What an all-reduce takes besides latencies and its bytes' way, by payload bytes.

    It is what was measured less those, so that it may fall where payloads grow. A ring of n sends
    2 (n - 1) pieces of B / n bytes one after another: rings of other lengths take as much for a
    piece of the same size.
    """

    measured: Curve
    """Seconds of whole all-reduces."""
    delay_s: float
    """Latencies in the way of the measured all-reduces."""
    s_per_byte: float
    """Seconds of their way."""
    among: int
    """Ranks that they were measured among."""
    count: int
    """Ranks that this is for."""
    rounds: int
    """Pieces that these send one after another."""

    def __call__(self, payload_bytes: float) -> float:
        """Seconds for a payload of that size."""
        least = self._excess(self.measured.samples[0])
        alike = self._excess(payload_bytes * self.among / self.count)
        by_rounds = least * self.rounds / (2 * (self.among - 1))
        by_bytes = (alike - least) * (self.count - 1) / (self.among - 1)
        return max(0.0, by_rounds + by_bytes)

    def _excess(self, payload_bytes: float) -> float:
        way = self.delay_s + self.s_per_byte * payload_bytes
        return max(0.0, self.measured(payload_bytes) - way)
