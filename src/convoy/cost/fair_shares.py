"""How flows share the links that they meet on: max-min fairness."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

from convoy.cost.fabric import Link


def fair_rates(
    loads: Mapping[int, Mapping[Link, float]], capacity: Callable[[Link], float]
) -> dict[int, float]:
    """Of each flow, the part of its whole that goes through in a second.

    All flows rise together, by the bytes on the link where each puts most; the first link to be
    full fixes those that use it (Bertsekas & Gallager 1992, section 6.5.2).

    Args:
        loads: by flow, the bytes above 0 that its whole puts on each link; at least one.
        capacity: bytes/s of a link.
    """
    if len(loads) == 1:  # nearly always: the all-reduces of a group come one after another
        ((index, load),) = loads.items()
        return {index: min(capacity(link) / size for link, size in load.items())}
    rising = {index: 1 / max(load.values()) for index, load in loads.items()}
    users: defaultdict[Link, set[int]] = defaultdict(set)
    for index, load in loads.items():
        for link in load:
            users[link].add(index)
    free = {link: capacity(link) for link in users}
    rates: dict[int, float] = {}
    while rising:
        levels = {
            link: free[link] / sum(rising[i] * loads[i][link] for i in who)
            for link, who in users.items()
            if who
        }
        fullest = min(levels, key=levels.__getitem__)
        for index in list(users[fullest]):
            rates[index] = levels[fullest] * rising.pop(index)
            for link, size in loads[index].items():
                users[link].discard(index)
                free[link] = max(0.0, free[link] - rates[index] * size)
    return rates
