"""Who takes part where a strategy has no use for everybody who is there.

A crew may shrink to a number that a strategy cannot plan for: three devices of a network that can
be cut in two have no place for the third, whereas four made two pipelines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from convoy.errors import UsageError
from convoy.strategies import Plan, Worker


def plan_for_most(
    plan: Callable[[Sequence[Worker]], Plan], workers: Sequence[Worker], needed: int | None = None
) -> Plan:
    """The plan for all workers, or for as many as there is one for, without the slowest.

    Args:
        plan: makes a plan for given workers, or raises UsageError.
        workers: in the order of their places.
        needed: the index of one that is to take part in any case.

    Raises:
        UsageError: there is no plan even for one; what was said of all of them.
    """
    seconds = _seconds(workers)
    fastest_first = sorted(workers, key=lambda w: (w.index != needed, seconds[w.index]))
    refusal: UsageError | None = None
    for count in range(len(workers), 0, -1):
        taking_part = {worker.index for worker in fastest_first[:count]}
        try:
            return plan([worker for worker in workers if worker.index in taking_part])
        except UsageError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _seconds(workers: Sequence[Worker]) -> dict[int, float]:
    """By index, what the same work takes: as measured of a whole batch, or by weights."""
    curves = [worker.seconds for worker in workers if worker.seconds is not None]
    if len(curves) < len(workers):
        return {worker.index: 1 / worker.weight for worker in workers}
    batch = max(curve.samples[-1] for curve in curves)
    return {w.index: curve(batch) for w, curve in zip(workers, curves, strict=True)}
