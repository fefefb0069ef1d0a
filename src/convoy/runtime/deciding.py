"""`--strategy auto`: measure if need be, plan, and take what is predicted to be fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convoy.cost.layers import facts_of
from convoy.cost.world import world_of
from convoy.planner import Prediction, Ranking, Task, problem_of, rank_plans
from convoy.runtime.formation import Job
from convoy.runtime.observer import Observer
from convoy.runtime.placement import Place
from convoy.runtime.pool import Pool
from convoy.runtime.profiles import fitting, positions
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


def decide(
    job: Job,
    network: Any,
    image_shape: tuple[int, ...],
    places: Sequence[Place],
    observer: Observer,
    pool: Pool,
    *,
    given: Path | None = None,
) -> Decision:
    """The fastest exact way to train on these places.

    Args:
        network: the job's network, built.
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
    profile = fitting(job, places, observer, pool, given=given)
    world = world_of(profile).select(positions(profile, places))
    task = Task(
        network=facts_of(network, image_shape),
        batch_size=settings.batch_size,
        optimizer=settings.optimizer,
        element_bytes=8 if settings.precision == "fp64" else 4,
    )
    exact = [name for name, strategy in STRATEGIES.items() if strategy.exact]
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
        places=informed(places, ranking, chosen),
        taking_part=chosen.picks,
        prediction=chosen,
        ranking=ranking,
    )


def informed(
    places: Sequence[Place], ranking: Ranking, prediction: Prediction
) -> tuple[Place, ...]:
    """The places, those of `prediction` with what a step takes them."""
    problem = problem_of(ranking.world, ranking.task, prediction.strategy, prediction.picks)
    known = list(places)
    for worker in problem.workers:
        known[worker.index] = replace(known[worker.index], seconds=worker.seconds)
    return tuple(known)
