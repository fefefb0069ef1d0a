"""How far behind pushes are, and how a bound on that slows replicas down, as far as is foreseen.

With no bound, and R replicas of whatever speeds, a push is R - 1 versions behind on average: while
replica r computes, each other one o pushes v_o / v_r times, and of all V = sum v pushes the part
v_r / V is r's, so that the mean is sum over r of (V - v_r) / V.

With a bound the gate decides (`update_gate.py`), which is played.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from convoy.strategies.update_gate import Offer, UpdateGate

PUSHES_EACH = 30
"""Of the slowest replica, in what is played."""
MOST_PUSHES = 20_000


def mean_staleness(replicas: int, *, fetches_every: float = 1.0, depth: int = 0) -> float:
    """Versions that pushes are behind on average, with no bound.

    Args:
        fetches_every: pushes between two fetches; less than one counts as one.
        depth: pushes that are unanswered while a replica computes on.
    """
    window = max(1.0, fetches_every)
    others, own = (replicas - 1) * (window + 1) / 2, (window - 1) / 2
    return others + own + depth * replicas


def within_bound(speeds: Sequence[float], bound: int) -> tuple[tuple[float, ...], float]:
    """Replicas' speeds where none may push more than `bound` versions behind.

    Args:
        speeds: pushes per second of each alone.

    Returns:
        Pushes per second of each, and how many versions they are behind on average.
    """
    gate: UpdateGate[int] = UpdateGate(bound)
    bases = [gate.fetched(replica) for replica in range(len(speeds))]
    events = [(1 / speed, replica) for replica, speed in enumerate(speeds)]
    heapq.heapify(events)
    done, behind, now = [0] * len(speeds), 0, 0.0
    while min(done) < PUSHES_EACH and sum(done) < MOST_PUSHES:
        now, replica = heapq.heappop(events)
        gate.offer(Offer(replica=replica, base=bases[replica], content=replica), ())
        while taken := gate.next_update():
            for offer in taken:
                done[offer.replica] += 1
                behind += gate.version - 1 - offer.base
                bases[offer.replica] = gate.hand_out(offer.replica)
                heapq.heappush(events, (now + 1 / speeds[offer.replica], offer.replica))
    return tuple(max(1, count) / now for count in done), behind / sum(done)
