"""Ways of training side by side: what was predicted of each, and what happened.

    profile ─▶ predictions ─┐
                            ├─▶ for every repeat, for every way in turn: one run ─▶ rows
    places, processes ──────┘

All runs begin with the same weights and see the same samples. They take turns, so that a machine
that grows slower with time does so for all; processes are used again and again.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convoy.cost.layers import facts_of
from convoy.cost.world import World, world_of
from convoy.datasets import DataSet
from convoy.errors import UsageError
from convoy.planner import Prediction, Ranking, Task, predict, rank_plans
from convoy.runtime.deciding import Decision, informed, task_of
from convoy.runtime.formation import Job
from convoy.runtime.ingredients import build_network, num_steps, open_data
from convoy.runtime.interrupt import Interrupt
from convoy.runtime.json_lines import read_lines
from convoy.runtime.observer import Observer
from convoy.runtime.placement import Place, places
from convoy.runtime.pool import pool
from convoy.runtime.preparation import prepare
from convoy.runtime.profiles import fitting, positions
from convoy.runtime.records import StepSummary, read_steps
from convoy.runtime.results import WARM_UP_STEPS, RunResult
from convoy.runtime.run import run_at
from convoy.runtime.sampler import GlobalOrder
from convoy.runtime.settings import TrainSettings
from convoy.strategies import candidates

RUN_S = 4.0
"""How long each run is to take, about, where nothing is said of steps or epochs."""
LEAST_STEPS, MOST_STEPS = 8, 600
"""Steps of such a run that are counted, apart from warm-up."""
DIFFERENT = 1.1
"""Ways whose measured times differ by this factor have an order."""
TRIMMED = 0.1
"""What is left out at either end before a mean is taken."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of training that takes part in a comparison."""

    label: str
    prediction: Prediction
    equal: bool = False
    """Whether it is planned as if all machines were alike, as plain data parallelism is."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What came of a comparison: rows as `convoy compare --json` prints them."""

    network: str
    dataset: str
    batch_size: int
    repeats: int
    target_accuracy: float | None
    runs: list[dict[str, Any]]
    """One row for each way, over all of its repeats."""
    chosen: str | None
    """The label of the way that `auto` would take if these were all; None if it takes none."""
    order: dict[str, int]
    """Of the pairs of ways whose measured times differ by over a tenth, how many there are, and
    how many were put in that order."""
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return vars(self) | {"folder": str(self.folder)}


def compare_at(
    job: Job,
    names: Sequence[str],
    observer: Observer,
    *,
    out: Path,
    repeats: int = 3,
    equal: bool = False,
    each_single: bool = False,
    target_accuracy: float | None = None,
    verbose: bool = False,
) -> Comparison:
    """Predict and run strategies on the job's machines, in turns.

    Args:
        job: without a strategy.
        names: of the strategies; each runs on the machines that suit it best.
        out: a new folder; a run folder for every run lies in it.
        equal: run also, over all machines, what shares work as if they were alike.
        each_single: run also every device alone, and not only the fastest.
        target_accuracy: on the test set; the time to it is noted.
    """
    settings = job.settings
    data = open_data(job)
    facts = facts_of(build_network(job.network, data, settings.seed), data.train.image_shape)
    task = task_of(settings, facts)
    with places(settings, observer, verbose=verbose) as found, pool() as processes:
        profile = fitting(job, found, observer, processes, given=settings.profile)
        world = world_of(profile).select(positions(profile, found))
        settled = replace(job, settings=replace(settings, memory_format=profile.memory_format))
        ranking = rank_plans(world, task, candidates(settings.strategy_options, names))
        ways = _ways(
            world, task, [ranking.best, *ranking.predictions], equal=equal, each_single=each_single
        )
        _check_steps(settings, data, ways)
        results: dict[str, list[tuple[RunResult, float]]] = {way.label: [] for way in ways}
        for repeat in range(repeats):
            turn = repeat % len(ways)
            for way in ways[turn:] + ways[:turn]:
                observer.say(f"{repeat + 1} of {repeats}: {way.label}")
                folder = out / f"{way.label.replace(' ', '-')}-{repeat + 1}"
                decision = _decision(settled, way, found, ranking, folder)
                preparation = prepare(decision.job, observer)
                with Interrupt() as interrupt:
                    result = run_at(preparation, decision, processes, interrupt, observer)
                step_s = measured_step_s(result.folder, _period(way), task.batch_size)
                if way.prediction.strategy.asynchronous and result.images_per_s:
                    step_s = task.batch_size / result.images_per_s  # steps side by side
                results[way.label].append((result, step_s))
    rows = [_row(world, way, results[way.label], target_accuracy) for way in ways]
    for key in ("predicted", "measured"):
        for place, row in enumerate(sorted(rows, key=lambda r: r[f"{key}_step_s"]), 1):
            row[f"{key}_place"] = place
    return Comparison(
        network=settings.network,
        dataset=data.name,
        batch_size=settings.batch_size,
        repeats=repeats,
        target_accuracy=target_accuracy,
        runs=sorted(rows, key=lambda row: row["measured_step_s"]),
        chosen=ways[0].label if ways[0].prediction.exact else None,
        order=_order(rows),
        folder=out,
    )


def _order(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Of the pairs whose measured times differ enough to have an order, how many had it before."""
    pairs = [
        sorted(pair, key=lambda row: row["measured_step_s"])
        for pair in itertools.combinations(rows, 2)
    ]
    apart = [(a, b) for a, b in pairs if b["measured_step_s"] > a["measured_step_s"] * DIFFERENT]
    right = sum(a["predicted_step_s"] < b["predicted_step_s"] for a, b in apart)
    return {"pairs": len(apart), "right": right}


def _check_steps(settings: TrainSettings, data: DataSet, ways: Sequence[Way]) -> None:
    """Refuse runs so short that nothing is left to be timed."""
    if settings.steps is None and settings.epochs is None:
        return
    order = GlobalOrder(
        num_samples=len(data.train), batch_size=settings.batch_size, seed=settings.seed
    )
    steps = num_steps(settings, order)
    for way in ways:
        least = WARM_UP_STEPS + _period(way)
        if steps < least:
            raise UsageError(
                f"{steps} steps: {way.label} needs {least} or more, since the first "
                f"{WARM_UP_STEPS} are not counted. Give more --steps or --epochs"
            )


def _period(way: Way) -> int:
    """Steps after which the next are alike."""
    assert way.prediction.plan is not None
    return way.prediction.strategy.period(way.prediction.plan)[1]


def steps_of(prediction: Prediction) -> int:
    """Steps that take about `RUN_S`, in whole periods of the strategy."""
    assert prediction.plan is not None
    period = prediction.strategy.period(prediction.plan)[1]
    wanted = min(MOST_STEPS, max(LEAST_STEPS, 2 * period, int(RUN_S / prediction.step_s)))
    return WARM_UP_STEPS + -(-wanted // period) * period


def measured_step_s(folder: Path, period: int, batch_size: int) -> float:
    """What a step took, over full batches after warm-up; of the rank that took longest.

    Steps are taken in groups as long as the strategy's period (of `averaging`, up to an average),
    and the mean is over groups, a tenth left out at either end.
    """
    steps = [s for s in read_steps(folder / "steps.jsonl") if s.step >= WARM_UP_STEPS]
    groups = [steps[i : i + period] for i in range(0, len(steps) - period + 1, period)]
    full = [g for g in groups if all(s.samples == batch_size for s in g)] or [steps]
    times = sorted(_of_slowest(group) for group in full)
    out = int(TRIMMED * len(times))
    return statistics.fmean(times[out : len(times) - out])


def _of_slowest(group: Sequence[StepSummary]) -> float:
    by_rank: dict[int, list[float]] = {}
    for step in group:
        for row in step.ranks:
            if row["wall_s"] is not None:
                by_rank.setdefault(row["rank"], []).append(row["wall_s"])
    return max(statistics.fmean(times) for times in by_rank.values())


def _ways(
    world: World,
    task: Task,
    predictions: Sequence[Prediction],
    *,
    equal: bool,
    each_single: bool,
) -> list[Way]:
    """The first plan of each strategy, and what is asked for besides."""
    ways: list[Way] = []
    for prediction in predictions:
        strategy = prediction.strategy
        others = [w.prediction for w in ways if w.prediction.strategy == strategy]
        again = any(other.picks == prediction.picks for other in others)
        wanted = not others or (each_single and not strategy.uses_several)
        if again or not wanted or not prediction.feasible:
            continue
        label = strategy.name
        if not strategy.uses_several and each_single:
            label += f" {world.devices[prediction.picks[0]].machine}"
            if any(way.label == label for way in ways):
                label += f" {prediction.picks[0]}"
        ways.append(Way(label=label, prediction=prediction))
        everyone = range(len(world.devices))
        if equal and (strategy.exchanges_gradients or strategy.parts_state):
            on = everyone if strategy.exchanges_gradients else sorted(prediction.picks)
            alike = predict(world, task, strategy, on, equal=True)
            if not alike.feasible:
                raise UsageError(f"--equal: {alike.reason}")
            ways.append(Way(label=f"{label} equal", prediction=alike, equal=True))
    if not ways:
        raise UsageError(f"nothing to compare: {predictions[0].reason}")
    return ways


def _decision(
    job: Job, way: Way, found: Sequence[Place], ranking: Ranking, folder: Path
) -> Decision:
    settings = replace(
        job.settings,
        out=folder,
        strategy=way.prediction.strategy.name,
        profile=None,
        rebalance=False,  # what was predicted is to be seen
    )
    if settings.steps is None and settings.epochs is None:
        steps = steps_of(way.prediction)
        # Only steps are wanted of it; writing checkpoints takes time of those that follow.
        every = None if way.prediction.strategy.asynchronous else steps
        settings = replace(settings, steps=steps, checkpoint_every=every)
    known = informed(found, ranking.world, ranking.task, way.prediction)
    if way.equal:
        known = tuple(replace(place, seconds=None, weight=1.0) for place in found)
    return Decision(
        job=replace(job, strategy=way.prediction.strategy, settings=settings),
        places=known,
        taking_part=way.prediction.picks,
        prediction=way.prediction,
        world=None if way.equal else ranking.world,
    )


def _row(
    world: World,
    way: Way,
    results: Sequence[tuple[RunResult, float]],
    target_accuracy: float | None,
) -> dict[str, Any]:
    predicted = way.prediction
    assert predicted.plan is not None
    measured = statistics.median(step_s for _, step_s in results)
    accuracies = [r.test_accuracy for r, _ in results if r.test_accuracy is not None]
    return {
        "label": way.label,
        "strategy": predicted.strategy.name,
        "exact": predicted.exact,
        "machines": [
            {"name": world.devices[pick].machine, "samples": samples}
            for pick, samples in zip(predicted.picks, predicted.plan.shares, strict=True)
        ],
        "predicted_step_s": predicted.step_s,
        "predicted_p90_s": predicted.step_p90_s,
        "measured_step_s": measured,
        "measured_p90_s": statistics.median(r.step_s["p90"] or 0.0 for r, _ in results),
        "measured_each_s": [step_s for _, step_s in results],
        "error": predicted.step_s / measured - 1,
        "images_per_s": predicted.plan.problem.batch_size / measured,
        "sent_bytes_per_step": statistics.median(r.sent_bytes_per_step for r, _ in results),
        "predicted_sent_bytes_per_step": predicted.sent_bytes_per_step,
        "test_accuracy": statistics.median(accuracies) if accuracies else None,
        "time_to_target_s": _trimmed_time(results, target_accuracy),
        "folders": [str(r.folder) for r, _ in results],
    }


def _trimmed_time(
    results: Sequence[tuple[RunResult, float]], target_accuracy: float | None
) -> float | None:
    """Mean over repeats of the time to the target, fastest and slowest left out of five or more."""
    if target_accuracy is None:
        return None
    times = sorted(time_to(result.folder, target_accuracy) for result, _ in results)
    if len(times) >= 5:
        times = times[1:-1]
    mean = statistics.fmean(times)
    return mean if mean != float("inf") else None


def time_to(folder: Path, accuracy: float) -> float:
    """Seconds of training until an evaluation reaches `accuracy`; infinite if none does."""
    rows = read_lines(folder / "evaluations.jsonl")
    reached = [row["step"] for row in rows if row["test_accuracy"] >= accuracy]
    if not reached:
        return float("inf")
    if "elapsed_s" in rows[0]:  # asynchronous: steps lie side by side, and nobody waits meanwhile
        return float(min(row["elapsed_s"] for row in rows if row["test_accuracy"] >= accuracy))
    return sum(s.wall_s for s in read_steps(folder / "steps.jsonl") if s.step <= min(reached))
