"""Cutting shares anew when a machine has become slower or faster for a while.

    steps ─▶ window: median compute_s by rank ─▶ corrected curves ─▶ the strategy's plan
               ▲                                                          │ shorter steps,
               └─ rest ◀─ crew forms with new shares ◀─ `asks` ◀──────────┘ twice in a row

Nothing here knows a clock or a process: what is decided follows from the steps' records alone.
A rank that has a measured curve is corrected by one factor. Of one that has none, only this
share's time is known, and others are taken to be in proportion: too careful where a step also
has a fixed cost, so that shares then come to rest in several cuts, always from the same side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from convoy.cost.curve import Curve
from convoy.runtime.records import StepSummary
from convoy.runtime.results import WARM_UP_STEPS
from convoy.runtime.settings import TrainSettings
from convoy.strategies import Plan, Problem, Strategy, Worker

LEAST_S = 1e-9  # what a clock that saw nothing is taken to have meant


@dataclass(frozen=True, kw_only=True)
class Caution:
    """What it takes until shares are cut anew."""

    window_steps: int = 12
    """Whole steps that a window has at least."""
    window_s: float = 2.0
    """Seconds of steps that a window has at least."""
    gain: float = 0.08
    """Part of a step's time that new shares have to save, in two windows in a row."""
    kept: float = 1 / 3
    """Part of the promised saving that counts as having kept the promise."""
    rest_windows: int = 2
    """Windows without judgement after a cut; twice as many each time a promise is not kept."""
    longest_rest_windows: int = 32


@dataclass(frozen=True, kw_only=True)
class Rebalancing:
    """Shares were cut anew."""

    step: int
    """The first step with the new shares."""
    before: tuple[int, ...]
    after: tuple[int, ...]
    reason: str

    def __str__(self) -> str:
        before, after = ("/".join(map(str, shares)) for shares in (self.before, self.after))
        return f"{self.reason}: shares from {before} to {after} at step {self.step}"


@dataclass(frozen=True, kw_only=True)
class _Promise:
    """What the longest computation of a step was to become."""

    shares: tuple[int, ...]
    before_s: float
    after_s: float


class Balancer:
    """Follows a run's steps and says when other shares are worth it.

    done = balancer.begin(plan, generation, step)    a crew has formed; what was cut, if it was
    balancer.take(steps)                             its steps, as they complete
    if balancer.asks: ...                            stop it, and form it anew with a plan for
    balancer.corrected(workers)                      what is now known of these
    """

    def __init__(
        self,
        make_plan: Callable[[Problem], Plan],
        *,
        active: bool = True,
        caution: Caution | None = None,
    ) -> None:
        self.asks = False
        """Whether the crew is to form anew with other shares."""
        self._make_plan = make_plan
        self._active = active
        self._caution = caution or Caution()
        self._believed: dict[int, Curve] = {}
        self._plan: Plan | None = None
        self._generation = -1
        self._reason = ""
        self._promise: _Promise | None = None
        self._next_rest = self._caution.rest_windows
        self._rest = 0
        self._to_skip = 0
        self._window: list[StepSummary] = []
        self._window_s = 0.0
        self._proposed: tuple[int, ...] | None = None

    def begin(self, plan: Plan, generation: int, step: int) -> Rebalancing | None:
        """A crew has formed and goes on from `step`; if that is since `asks`, what it changed."""
        done = None
        same = self._plan is not None and len(self._plan.shares) == len(plan.shares)
        if self.asks and same and self._plan is not None:  # and nobody was lost meanwhile
            done = Rebalancing(
                step=step, before=self._plan.shares, after=plan.shares, reason=self._reason
            )
        if done is None or (self._promise and self._promise.shares != plan.shares):
            self._promise = None  # it was made to another crew
        self.asks = False
        self._plan, self._generation = plan, generation
        self._restart()
        return done

    def take(self, steps: Iterable[StepSummary]) -> None:
        """Steps have completed. Those of other crews, short ones and untimed ones do not count."""
        plan, caution = self._plan, self._caution
        if plan is None or not self._active or len(plan.shares) < 2:
            return
        for step in steps:
            if self.asks or step.generation != self._generation:
                continue
            if self._to_skip:
                self._to_skip -= 1
                continue
            timed = all(row["compute_s"] is not None for row in step.ranks)
            if step.samples < plan.problem.batch_size or not timed:
                continue
            self._window.append(step)
            self._window_s += step.wall_s
            if len(self._window) >= caution.window_steps and self._window_s >= caution.window_s:
                window, self._window, self._window_s = self._window, [], 0.0
                self._judge(plan, window)

    def corrected(self, workers: Sequence[Worker]) -> tuple[Worker, ...]:
        """`workers` as they turned out to be, each with a curve once one of them is known.

        A newcomer without a curve is put beside the others by its weight.
        """
        known = [worker for worker in workers if worker.index in self._believed]
        if not known or self._plan is None:
            return tuple(workers)
        typical = self._plan.problem.batch_size / len(workers)
        pace_s = median(w.weight * self._believed[w.index](typical) / typical for w in known)
        curves = [self._believed.get(worker.index, worker.seconds) for worker in workers]
        return tuple(
            replace(worker, seconds=curve or Curve((1,), (pace_s / worker.weight,)))
            for worker, curve in zip(workers, curves, strict=True)
        )

    def _restart(self) -> None:
        self._to_skip = WARM_UP_STEPS
        self._window, self._window_s = [], 0.0
        self._proposed = None

    def _judge(self, plan: Plan, window: Sequence[StepSummary]) -> None:
        """Weigh other shares against what a window has measured."""
        measured_s = [
            max(LEAST_S, median(step.ranks[rank]["compute_s"] for step in window))
            for rank in range(len(plan.shares))
        ]
        now_s = max(measured_s)
        self._settle_promise(now_s)
        if self._rest:
            self._rest -= 1
            return
        workers = tuple(map(_correct, plan.problem.workers, plan.shares, measured_s))
        proposal = self._make_plan(replace(plan.problem, workers=workers)).shares
        step_s = median(step.wall_s for step in window)
        worth = (now_s - _longest_s(workers, proposal)) / step_s >= self._caution.gain
        before, self._proposed = self._proposed, proposal if worth else None
        if not worth or before is None:
            return
        if (now_s - _longest_s(workers, before)) / step_s < self._caution.gain:
            return  # these two windows do not say the same
        self.asks = True
        self._reason = _reason(plan, measured_s)
        self._believed |= {w.index: w.seconds for w in workers if w.seconds is not None}
        after_s = _longest_s(workers, proposal)
        self._promise = _Promise(shares=proposal, before_s=now_s, after_s=after_s)
        self._rest = self._next_rest

    def _settle_promise(self, now_s: float) -> None:
        """In the first window after a cut: how long to rest after this one, or after the next."""
        promise, self._promise = self._promise, None
        if promise is None:
            return
        saved_s = promise.before_s - now_s
        if saved_s >= self._caution.kept * (promise.before_s - promise.after_s):
            self._next_rest = self._caution.rest_windows
        else:
            self._next_rest = min(2 * self._next_rest, self._caution.longest_rest_windows)
            self._rest = self._next_rest


def balancer_for(strategy: Strategy, settings: TrainSettings) -> Balancer:
    """The run's balancer; it never asks where that was ruled out, or makes no sense.

    Shares that were given are what the user wants, and stay.
    """
    active = strategy.rebalances and settings.rebalance and settings.shares is None
    return Balancer(strategy.plan, active=active)


def _correct(worker: Worker, share: int, measured_s: float) -> Worker:
    """`worker` with a curve that goes through what was measured at `share`."""
    expected_s = worker.seconds(share) if worker.seconds is not None else 0.0
    if worker.seconds is not None and expected_s > 0:
        return replace(worker, seconds=worker.seconds.scaled(measured_s / expected_s))
    return replace(worker, seconds=Curve((1,), (measured_s / share,)))


def _longest_s(workers: Sequence[Worker], shares: Sequence[int]) -> float:
    """Seconds of the rank that computes longest; every worker has a curve."""
    return max(w.seconds(n) for w, n in zip(workers, shares, strict=True) if w.seconds is not None)


def _reason(plan: Plan, measured_s: Sequence[float]) -> str:
    """Which rank is furthest from what was planned, or slowest where no times were planned."""
    ranks = range(len(measured_s))
    curves = [worker.seconds for worker in plan.problem.workers]
    planned_s = [c(n) for c, n in zip(curves, plan.shares, strict=True) if c is not None]
    if len(planned_s) == len(measured_s) and min(planned_s) > 0:
        ratios = [
            measured / planned for measured, planned in zip(measured_s, planned_s, strict=True)
        ]
        rank = max(ranks, key=lambda r: abs(math.log(ratios[r])))
        ratio, against = ratios[rank], "planned"
    else:
        rank = max(ranks, key=lambda r: measured_s[r])
        ratio = measured_s[rank] / median(measured_s[r] for r in ranks if r != rank)
        against = "the others"
    machine = plan.problem.workers[rank].machine
    return f"rank {rank} on {machine} computes {ratio:.1f} times as long as {against}"
