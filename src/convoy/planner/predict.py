"""What one way of training on some devices is expected to cost."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from convoy.cost.layers import NetworkFacts
from convoy.cost.optimizers import OPTIMIZER_STATES, has_momentum
from convoy.cost.schedule import Schedule, sent_by_link, sent_by_rank
from convoy.cost.simulate import Played, simulate
from convoy.cost.world import World
from convoy.errors import UsageError
from convoy.strategies import Plan, Problem, Strategy, Worker

DRAWS = 30
"""How many steps, or periods of steps, are played with drawn variation."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be trained, apart from where and how."""

    network: NetworkFacts
    batch_size: int
    optimizer: str = "sgd"
    momentum: float = 0.9
    """Of sgd."""
    element_bytes: int = 4
    mixed: bool = False
    """Whether feature maps are bfloat16."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One way of training, and what it is expected to cost."""

    strategy: Strategy
    picks: tuple[int, ...]
    """Positions of its devices in the world, by rank."""
    plan: Plan | None
    """None if there is none; `reason` says why."""
    step_s: float = float("inf")
    """Mean over many steps."""
    step_p90_s: float = float("inf")
    sent_bytes_per_step: float = 0.0
    """Payload bytes of all ranks together, mean over steps."""
    link_bytes: dict[str, float] | None = None
    """By "from -> to" between machines, per step."""
    peak_bytes: tuple[int, ...] = ()
    """By rank."""
    feasible: bool = True
    reason: str = ""

    @property
    def exact(self) -> bool:
        """Whether it computes what one device would."""
        return self.strategy.exact and (self.plan is None or self.plan.exact)

    @property
    def images_per_s(self) -> float:
        """Throughput; 0 where there is no plan."""
        return self.plan.problem.batch_size / self.step_s if self.plan else 0.0


def predict(
    world: World,
    task: Task,
    strategy: Strategy,
    picks: Sequence[int],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    equal: bool = False,
) -> Prediction:
    """What `strategy` costs on these devices.

    Args:
        draws: periods of steps to play with drawn variation; 0 plays one without.
        equal: plan as if all devices and links were alike.
    """
    picks = tuple(picks)
    try:
        problem = problem_of(world, task, strategy, picks)
        plan = strategy.plan(_alike(problem) if equal else problem)
    except UsageError as error:
        return Prediction(
            strategy=strategy, picks=picks, plan=None, feasible=False, reason=str(error)
        )
    # a strategy may leave out who is slower, as `single` does
    picks = tuple(worker.index for worker in plan.problem.workers)
    fabric = world.fabric(picks)
    whole, count = strategy.stretch(plan)
    times = []
    luck = world.luck(picks, seed) if draws else None
    for _ in range(max(1, draws)):
        seconds = world.seconds(picks, luck)
        times.append(simulate(whole, seconds, fabric).step_s / count)
    memory = strategy.peak_bytes(plan)
    reason = world.shortage(picks, memory)
    tenths = statistics.quantiles(times, n=10, method="inclusive") if len(times) > 1 else times
    return Prediction(
        strategy=strategy,
        picks=picks,
        plan=plan,
        step_s=statistics.fmean(times),
        step_p90_s=tenths[-1],
        sent_bytes_per_step=sum(sent_by_rank(whole, len(picks))) / count,
        link_bytes=_link_bytes(world, picks, whole, count),
        peak_bytes=memory,
        feasible=not reason,
        reason=reason,
    )


def play(world: World, prediction: Prediction) -> tuple[Schedule, Played]:
    """One average step of a predicted plan, operation by operation."""
    assert prediction.plan is not None
    first, count = prediction.strategy.period(prediction.plan)
    schedule = prediction.strategy.schedule(prediction.plan, first + count - 1)
    fabric = world.fabric(prediction.picks)
    return schedule, simulate(schedule, world.seconds(prediction.picks), fabric)


def problem_of(world: World, task: Task, strategy: Strategy, picks: Sequence[int]) -> Problem:
    """The problem that `strategy` gets to plan for on these devices."""
    several = len(picks) > 1
    payload = task.network.num_parameters * task.element_bytes
    exchanged = payload if several and strategy.exchanges_gradients else 0
    workers = tuple(
        Worker(
            index=pick,
            machine=world.devices[pick].machine,
            device=world.devices[pick].device,
            seconds=world.step_curve(pick, len(picks), exchanged),
        )
        for pick in picks
    )
    return Problem(
        batch_size=task.batch_size,
        workers=workers,
        network=task.network,
        element_bytes=task.element_bytes,
        optimizer_states=OPTIMIZER_STATES[task.optimizer],
        has_momentum=has_momentum(task.optimizer, task.momentum),
        mixed=task.mixed,
        world=world,
    )


def _alike(problem: Problem) -> Problem:
    """The problem of someone who knows nothing of devices and links."""
    workers = tuple(replace(worker, seconds=None, weight=1.0) for worker in problem.workers)
    return replace(problem, workers=workers, world=None)


def _link_bytes(
    world: World, picks: Sequence[int], schedule: Schedule, steps: int
) -> dict[str, float]:
    """Bytes per step between machines."""
    links: dict[str, float] = {}
    for (rank, other), size in sent_by_link(schedule).items():
        source, target = world.devices[picks[rank]], world.devices[picks[other]]
        if source.host != target.host:
            name = f"{source.machine} -> {target.machine}"
            links[name] = links.get(name, 0.0) + size / steps
    return links
