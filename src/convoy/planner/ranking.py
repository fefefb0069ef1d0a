"""Ranks every strategy on every useful subset of a world's devices.

    strategies x subsets of devices ─▶ shares ─▶ schedule ─▶ simulate ─▶ step time ─▶ ranked

With up to 8 devices every subset is looked at. With more, devices are put in order of speed and
the search goes over growing prefixes of that order, and of the one by links and then speed, then
adds, drops or swaps one device at a time while that helps: devices differ in speed and link only,
so a plan that leaves out a faster one for a slower is rarely any good, and the swaps find where it
is.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from convoy.cost.world import World
from convoy.errors import UsageError
from convoy.planner.advice import advise
from convoy.planner.predict import Prediction, Task, predict
from convoy.strategies import Strategy

EXACT_UP_TO = 8
REFINED = 4
"""How many plans of each strategy are played with variation. The others are played once, on
average, and count as lengthened by as much as variation lengthens those, so that none of them is
best for not having been looked at closely."""
SLOWEST_LINK, FASTEST_LINK = 1e3, 1e12
"""Bytes/s between which a break-even is looked for."""
WORTH_IT = 0.02
"""A machine that shortens a step by less than this part is not worth its keep."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """All plans, best first, and what follows from them."""

    world: World
    task: Task
    predictions: tuple[Prediction, ...]
    """By step time; what cannot be carried out comes last."""
    chosen: int
    """Position of the plan to take: the fastest that computes what one machine would, or one of
    fewer devices that is hardly slower."""
    advice: str
    break_even_bandwidth: float | None
    """Bits/s of the links below which several machines are not worth it; 0 where they always are,
    None where they never are, or where several or one cannot be used at all."""

    @property
    def best(self) -> Prediction:
        """The plan to take.

        Raises:
            UsageError: no plan can be carried out.
        """
        best = self.predictions[self.chosen]
        if not best.feasible:
            raise UsageError(f"no plan can be carried out: {best.reason}")
        return best

    @property
    def best_single(self) -> Prediction | None:
        """The fastest device alone."""
        return next((p for p in self.predictions if len(p.picks) == 1 and p.feasible), None)


def rank_plans(
    world: World, task: Task, strategies: Sequence[Strategy], *, seed: int = 0
) -> Ranking:
    """Predict every strategy on every useful subset of the world's devices.

    Raises:
        UsageError: none of the strategies can be used with that few devices.
    """
    found: list[Prediction] = []
    for strategy in strategies:
        found += _of_strategy(world, task, strategy, seed)
    if not found:
        names = ", ".join(strategy.name for strategy in strategies) or "no strategy"
        raise UsageError(
            f"nothing to choose from: {names} with {len(world.devices)} device. Use single, or "
            "measure more machines"
        )
    found.sort(key=lambda p: (not p.feasible, p.step_s, len(p.picks)))
    chosen = _choose(found)
    break_even = _break_even(world, task, found)
    return Ranking(
        world=world,
        task=task,
        predictions=tuple(found),
        chosen=chosen,
        advice=advise(world, task, found, chosen, break_even),
        break_even_bandwidth=break_even,
    )


def _of_strategy(world: World, task: Task, strategy: Strategy, seed: int) -> list[Prediction]:
    """Every useful subset: all by an average step, the best ones with variation."""
    known: dict[tuple[int, ...], Prediction] = {}

    def look(picks: Iterable[int]) -> Prediction:
        key = tuple(sorted(picks))
        if key not in known:
            known[key] = predict(world, task, strategy, key, draws=0)
        return known[key]

    everyone = range(len(world.devices))
    if not strategy.uses_several:
        for pick in everyone:
            look((pick,))
    elif len(everyone) <= EXACT_UP_TO:
        for size in range(2, len(everyone) + 1):
            for picks in itertools.combinations(everyone, size):
                look(picks)
    else:
        _search(world, task, look)
    ordered = sorted(known.values(), key=lambda p: (not p.feasible, p.step_s))
    keep = len(ordered) if not strategy.uses_several else REFINED
    refined = [
        predict(world, task, strategy, p.picks, seed=seed) if p.plan else p for p in ordered[:keep]
    ]
    longer = max(
        (r.step_s / p.step_s for r, p in zip(refined, ordered, strict=False) if p.feasible),
        default=1.0,
    )
    others = [
        replace(p, step_s=p.step_s * longer, step_p90_s=p.step_p90_s * longer)
        for p in ordered[keep:]
    ]
    return refined + others


def _search(world: World, task: Task, look: Callable[[Iterable[int]], Prediction]) -> None:
    """Prefixes of two orders, then one device in, out or exchanged while that helps."""
    size, count = task.batch_size, len(world.devices)
    order = sorted(range(count), key=lambda i: world.devices[i].whole(max(1, size // 2)))
    by_link = sorted(order, key=lambda i: -_typical_bandwidth(world, i))
    lengths = {min(count, n) for n in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)} | {count}
    prefixes = [look(way[:n]) for way in (order, by_link) for n in sorted(lengths)]
    best = min(prefixes, key=lambda p: (not p.feasible, p.step_s))
    while True:
        inside = [i for i in order if i in best.picks]
        outside = [i for i in order if i not in best.picks][:4]
        trials = [look([*inside, other]) for other in outside]
        if len(inside) > 2:
            trials += [look([i for i in inside if i != out]) for out in inside[-8:]]
        trials += [
            look([*(i for i in inside if i != out), other])
            for out in inside[-4:]
            for other in outside
        ]
        better = min(trials, key=lambda p: (not p.feasible, p.step_s), default=best)
        if not better.feasible or better.step_s >= best.step_s * 0.999:
            return
        best = better


def _typical_bandwidth(world: World, pick: int) -> float:
    """The middle one of a device's links to the others' machines."""
    host = world.devices[pick].host
    links = [world.bandwidths[host, other.host] for other in world.devices if other.host != host]
    return statistics.median_low(links) if links else math.inf


def _unasked(prediction: Prediction) -> bool:
    """Whether it may be chosen where nobody has asked for it by name."""
    return prediction.exact and prediction.strategy.proven


def _choose(found: Sequence[Prediction]) -> int:
    """Position of the fastest exact plan, or of one with fewer devices that is hardly slower."""
    exact = [i for i, p in enumerate(found) if p.feasible and _unasked(p)]
    if not exact:
        return 0
    enough = found[exact[0]].step_s * (1 + WORTH_IT)
    near = [i for i in exact if found[i].step_s <= enough]

    def preferred(i: int) -> tuple[int, bool, float]:
        # where each rank has a part of the state, more is done again when one is lost
        return len(found[i].picks), found[i].strategy.parts_state, found[i].step_s

    return min(near, key=preferred)


def _break_even(world: World, task: Task, found: Sequence[Prediction]) -> float | None:
    """Bits/s from which on some plan of several machines is worth more than any of one machine.

    Each plan is made for other links and played there without variation, and lengthened by as much
    as variation lengthens it at those that there are, so that the answer agrees with what is chosen
    there.
    """
    usable = [p for p in found if p.feasible and _unasked(p)]
    hosts = {id(p): len({world.devices[pick].host for pick in p.picks}) for p in usable}
    alone = min((p.step_s for p in usable if hosts[id(p)] == 1), default=None)
    several = [p for p in usable if hosts[id(p)] > 1]
    if alone is None or not several:
        return None
    best: float | None = None
    for p in several:  # the fastest here first: few of the others go lower
        plain = predict(world, task, p.strategy, p.picks, draws=0).step_s
        enough = alone / (1 + WORTH_IT) * plain / p.step_s

        def pays(bandwidth: float, p: Prediction = p, enough: float = enough) -> bool:
            step = predict(world.at(bandwidth), task, p.strategy, p.picks, draws=0)
            return step.feasible and _unasked(step) and step.step_s < enough

        if pays(best or FASTEST_LINK):
            best = _lowest(pays, best or FASTEST_LINK)
        if best is not None and best <= SLOWEST_LINK:
            return 0.0
    return None if best is None else 8 * best


def _lowest(pays: Callable[[float], bool], high: float) -> float:
    """The lowest bandwidth that pays, within 2%; SLOWEST_LINK if that one does."""
    low = SLOWEST_LINK
    if pays(low):
        return low
    while high / low > 1.02:
        middle = (low * high) ** 0.5
        if pays(middle):
            high = middle
        else:
            low = middle
    return high
