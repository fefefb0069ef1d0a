"""Where a rank stops between two steps, and how all ranks stop between the same two.

Ranks of a synchronous strategy may be one step apart, and those that train alone many. To
stop them at one boundary takes two rounds:

    driver            rank 0 (in step 7)      rank 1 (in step 8)
      hold() ───────▶ begins no step ────────▶ begins no step
           ◀───────── 7                     8
      release(9) ───▶ runs 8, stops          stops
"""

from __future__ import annotations

import threading


class Gate:
    """Admits a training loop to each step. Safe to use from several threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.reset(0)

    def reset(self, first_step: int) -> None:
        """Open the gate for a loop that begins with `first_step`."""
        with self._changed:
            self._step = first_step - 1
            self._held = False
            self._stop_before: int | None = None
            self.reason = ""
            """Why the rank was stopped; what `release` was given."""

    def admit(self, step: int) -> bool:
        """Whether `step` may begin. Waits while the gate is held; False once it is to stop."""
        with self._changed:
            while self._held and self._stop_before is None:
                self._changed.wait()
            if self._stop_before is not None and step >= self._stop_before:
                return False
            self._step = step
            return True

    def hold(self) -> int:
        """Let no further step begin until `release`; return the last one that has begun."""
        with self._changed:
            self._held = True
            return self._step

    def release(self, stop_before: int, reason: str) -> None:
        """Let steps before `stop_before` run, and stop there."""
        with self._changed:
            self._stop_before = stop_before
            self.reason = reason
            self._changed.notify_all()
