"""`--strategy auto`: measure if need be, plan, and take what is predicted to be fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from convoy.cost.layers import NetworkFacts
from convoy.cost.profile import Profile
from convoy.cost.world import World, world_of
from convoy.errors import UsageError
from convoy.planner import Prediction, Ranking, Task, predict, problem_of, rank_plans
from convoy.runtime.formation import Job
from convoy.runtime.observer import Observer
from convoy.runtime.placement import Place
from convoy.runtime.pool import Pool
from convoy.runtime.profiles import fitting, positions
from convoy.runtime.settings import TrainSettings
from convoy.strategies import STRATEGIES, candidates, options_of


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What is done, and why."""

    job: Job
    """With the strategy."""
    places: tuple[Place, ...]
    """All there are; those that take part know what a step takes them."""
    taking_part: tuple[int, ...]
    """Positions of those in `places`."""
    prediction: Prediction | None = None
    """None where nothing was measured, since there was nothing to choose from."""
    ranking: Ranking | None = None
    world: World | None = None
    """What was measured."""


def task_of(settings: TrainSettings, facts: NetworkFacts) -> Task:
    """What the planner is to plan for."""
    return Task(
        network=facts,
        batch_size=settings.batch_size,
        optimizer=settings.optimizer,
        momentum=settings.momentum,
        element_bytes=8 if settings.precision == "fp64" else 4,
        mixed=settings.precision == "bf16",
    )


def decide(
    job: Job,
    facts: NetworkFacts,
    places: Sequence[Place],
    observer: Observer,
    pool: Pool,
    *,
    given: Path | None = None,
) -> Decision:
    """The fastest exact way to train on these places.

    Args:
        facts: of the job's network, with its layers.
        given: a profile to plan with.
    """
    settings = job.settings
    if len(places) == 1:
        alone = next(s for s in candidates({}) if not s.uses_several)
        settled = replace(settings, strategy=alone.name, strategy_options={}, profile=None)
        return Decision(
            job=replace(job, strategy=alone, settings=settled),
            places=tuple(places),
            taking_part=(0,),
        )
    profile, world = _measured(job, places, observer, pool, given)
    task = task_of(settings, facts)
    exact = [name for name, s in STRATEGIES.items() if s.exact and s.proven]
    ranking = rank_plans(world, task, candidates(settings.strategy_options, exact))
    chosen = ranking.best
    observer.say(ranking.advice)
    return Decision(
        job=replace(
            job,
            strategy=chosen.strategy,
            settings=replace(
                settings,
                strategy=chosen.strategy.name,
                strategy_options=options_of(chosen.strategy, settings.strategy_options),
                profile=None,
                memory_format=profile.memory_format,
            ),
        ),
        places=informed(places, world, task, chosen),
        taking_part=chosen.picks,
        prediction=chosen,
        ranking=ranking,
        world=world,
    )


def carry_out(
    job: Job,
    facts: NetworkFacts,
    places: Sequence[Place],
    observer: Observer,
    pool: Pool,
    *,
    given: Path | None = None,
) -> Decision:
    """The strategy that was asked for, on all places, planned by what was measured of them.

    Raises:
        UsageError: it cannot be carried out there; says why.
    """
    profile, world = _measured(job, places, observer, pool, given)
    task = task_of(job.settings, facts)
    prediction = predict(world, task, job.decided, range(len(places)))
    if not prediction.feasible:
        raise UsageError(f"--strategy {job.decided.name}: {prediction.reason}")
    settings = replace(job.settings, memory_format=profile.memory_format, profile=None)
    return Decision(
        job=replace(job, settings=settings),
        places=informed(places, world, task, prediction),
        taking_part=prediction.picks,
        prediction=prediction,
        world=world,
    )


def _measured(
    job: Job, places: Sequence[Place], observer: Observer, pool: Pool, given: Path | None
) -> tuple[Profile, World]:
    """A profile that fits, and the places as devices of a world, in their order."""
    profile = fitting(job, places, observer, pool, given=given)
    return profile, world_of(profile).select(positions(profile, places))


def informed(
    places: Sequence[Place], world: World, task: Task, prediction: Prediction
) -> tuple[Place, ...]:
    """The places, those of `prediction` with what a step takes them."""
    problem = problem_of(world, task, prediction.strategy, prediction.picks)
    known = list(places)
    for worker in problem.workers:
        known[worker.index] = replace(known[worker.index], seconds=worker.seconds)
    return tuple(known)
