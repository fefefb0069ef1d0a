"""A ranking in words: what to use, what to leave out, and why."""

from __future__ import annotations

from collections.abc import Sequence

from convoy.cost.world import World
from convoy.planner.predict import Prediction, Task


def advise(
    world: World,
    task: Task,
    found: Sequence[Prediction],
    chosen: int,
    break_even: float | None,
) -> str:
    """The verdict in words: what to use, whom to leave out and why, and which links it takes."""
    best = found[chosen]
    if not best.feasible:
        return f"No plan can be carried out. {best.reason}"
    single = next((p for p in found if len(p.picks) == 1 and p.feasible), None)
    sentences = [f"Use {_described(world, best)}: {best.images_per_s:,.0f} images/s."]
    if single is not None and single is not best:
        gain = single.step_s / best.step_s
        sentences.append(
            f"That is {gain:.2f} times as fast as {_name(world, single.picks[0])} alone."
        )
    elif single is None and (alone := [p for p in found if len(p.picks) == 1]):
        sentences.append(f"No device can do it alone: {alone[0].reason}.")
    faster = next((p for p in found if p.strategy.proven), best)
    if not faster.exact and faster.step_s < best.step_s * 0.98:
        sentences.append(
            f"{_described(world, faster)} would be {best.step_s / faster.step_s:.2f} times as fast "
            "again, with other mathematics than one machine's."
        )
    outside = [pick for pick in range(len(world.devices)) if pick not in best.picks]
    sentences += [_why_not(world, task, found, best, pick) for pick in outside]
    sentences += _about_links(world, best, found, break_even)
    return " ".join(sentences)


def _about_links(
    world: World, best: Prediction, found: Sequence[Prediction], break_even: float | None
) -> list[str]:
    """What the links between machines would have to be for another verdict."""
    hosts = [{world.devices[pick].host for pick in p.picks} for p in found if p.feasible]
    several = len({world.devices[pick].host for pick in best.picks}) > 1
    if break_even is None:
        never = not several and any(len(some) > 1 for some in hosts)
        return ["No link would be fast enough for several machines to be worth it."] * never
    if break_even == 0:
        return ["Several machines would be worth it however slow the links were."] * several
    if several:
        return [f"Below {_bits(break_even)} between machines, one machine does as well alone."]
    return [f"It would take links of {_bits(break_even)} for several machines to be worth it."]


def _why_not(
    world: World, task: Task, found: Sequence[Prediction], best: Prediction, pick: int
) -> str:
    """Why a device stays out: with it, a step takes as long or longer."""
    name = _name(world, pick)
    wider = [
        p
        for p in found
        if p.feasible and p.exact and p.strategy.proven
        if set(p.picks) == {*best.picks, pick}
    ]
    if not wider:
        cannot = (p.reason for p in found if {*p.picks} == {*best.picks, pick} and p.reason)
        why = next(cannot, "")
        return f"Leave {name} out: {why}." if why else f"Leave {name} out."
    p = min(wider, key=lambda p: p.step_s)
    change = p.step_s / best.step_s - 1
    if change < 0:
        return f"Leave {name} out: it would save only {-change:.1%} of a step."
    assert p.plan is not None
    share = p.plan.shares[p.picks.index(pick)]
    longer = (
        f"Leave {name} out: with it a step takes {_ms(p.step_s)} ms instead of {_ms(best.step_s)}"
    )
    if not share:  # it is not samples that it would get
        return f"{longer}."
    alone = world.step_curve(pick, len(p.picks))(share)
    cause = (
        f"its {share} of {task.batch_size} samples take it {_ms(alone)} ms, and the exchange "
        "the rest"
        if alone < p.step_s
        else f"even {share} of {task.batch_size} samples take it {_ms(alone)} ms"
    )
    return f"{longer}: {cause}."


def _described(world: World, prediction: Prediction) -> str:
    if len(prediction.picks) == 1:
        return f"{_name(world, prediction.picks[0])} alone"
    assert prediction.plan is not None
    parts = [
        f"{_name(world, pick)} ({portion:.0%})"
        for pick, portion in zip(prediction.picks, prediction.plan.portions, strict=True)
    ]
    return f"{prediction.strategy.name} on {', '.join(parts[:-1])} and {parts[-1]}"


def _name(world: World, pick: int) -> str:
    device = world.devices[pick]
    same = [i for i, d in enumerate(world.devices) if d.machine == device.machine]
    if len(same) == 1:
        return device.machine
    return f"{device.machine} ({device.device}, {same.index(pick) + 1} of {len(same)})"


def _ms(seconds: float) -> str:
    """Milliseconds to three digits, so that a GPU's few can be told apart."""
    return f"{seconds * 1e3:.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.3g}"


def _bits(bits_s: float) -> str:
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6)):
        if bits_s >= size:
            return f"{bits_s / size:.3g} {unit}"
    return f"{bits_s / 1e3:.3g} kbit/s"
