"""How a strategy's throughput grows with the number of equal nodes. Pure.

A point is one average step, played without drawn variation: with hundreds of nodes a draw would say
little but how slow the slowest of many is. *Exposed* communication is what the step takes longer
than the work of its busiest node does, so whatever is not hidden behind computing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from convoy.cost.equal_nodes import EqualNodes
from convoy.cost.layers import NetworkFacts
from convoy.cost.optimizers import OPTIMIZER_STATES, has_momentum
from convoy.cost.schedule import Compute, sent_by_rank
from convoy.cost.simulate import simulate
from convoy.errors import UsageError
from convoy.strategies import Plan, Problem, Strategy, Worker

EXPOSED_ABOVE = 0.1
"""Communication counts as hidden while at most this part of a step is exposed."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a step trains on: the same batch on ever more nodes, or ever more samples."""

    network: NetworkFacts
    batch_size: int | None = None
    """Samples of a step over all nodes (strong scaling), or"""
    batch_per_node: int | None = None
    """of each node (weak scaling)."""
    optimizer: str = "sgd"
    element_bytes: int = 4

    def samples(self, nodes: int) -> int:
        """Of a step on so many nodes."""
        if self.batch_size is not None:
            return self.batch_size
        assert self.batch_per_node is not None
        return self.batch_per_node * nodes


@dataclass(frozen=True, kw_only=True)
class ScalingPoint:
    """One strategy on one number of nodes."""

    strategy: str
    nodes: int
    batch_size: int
    images_per_s: float
    efficiency: float | None
    """Throughput per node relative to the baseline's; None where that cannot be had."""
    step_s: float
    compute_s: float
    """Work of the busiest node."""
    exposed_comm_s: float
    """What of a step is neither: communication that nothing hides, and waiting for it."""
    exposed: float
    """The same as a part of the step."""
    sent_bytes_per_step: float
    """Payload bytes of all nodes together."""
    peak_bytes: int
    """Memory of the node that needs most."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A number of nodes that cannot be had, and why."""

    strategy: str
    nodes: int
    batch_size: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class ScalingCurve:
    """One strategy over numbers of nodes."""

    strategy: str
    points: tuple[ScalingPoint, ...]
    skipped: tuple[Skipped, ...]
    exposed_from: int | None
    """The first number of nodes at which communication is no longer hidden."""
    verdict: str


@dataclass(frozen=True, kw_only=True)
class _Played:
    plan: Plan
    step_s: float
    compute_s: float
    sent_bytes: float

    @property
    def images_per_s(self) -> float:
        return self.plan.problem.batch_size / self.step_s


def scaling_curve(
    nodes: EqualNodes,
    workload: Workload,
    strategy: Strategy,
    counts: Sequence[int],
    *,
    baseline: int = 1,
) -> ScalingCurve:
    """Play `strategy` on each number of nodes.

    Args:
        baseline: the number of nodes whose throughput per node has an efficiency of 1.
    """
    played: dict[int, _Played] = {}
    reasons: dict[int, str] = {}
    for count in (baseline, *counts):
        if count in played or count in reasons:
            continue
        try:
            played[count] = _play(nodes, workload, strategy, count)
        except UsageError as error:
            reasons[count] = str(error)
    points, skipped = [], []
    for count in counts:
        size = workload.samples(count)
        memory = 0
        if count in played:
            memory = max(strategy.peak_bytes(played[count].plan))
        reason = reasons.get(count) or _too_large(nodes, count, memory)
        if reason:
            found = Skipped(strategy=strategy.name, nodes=count, batch_size=size, reason=reason)
            skipped.append(found)
        else:
            points.append(
                _point(played[count], count, memory, strategy.name, played.get(baseline), baseline)
            )
    exposed_from = next((p.nodes for p in points if p.exposed > EXPOSED_ABOVE), None)
    return ScalingCurve(
        strategy=strategy.name,
        points=tuple(points),
        skipped=tuple(skipped),
        exposed_from=exposed_from,
        verdict=_verdict(strategy.name, points),
    )


def _play(nodes: EqualNodes, workload: Workload, strategy: Strategy, count: int) -> _Played:
    network = workload.network
    several = count > 1 and strategy.exchanges_gradients
    payload = network.num_parameters * workload.element_bytes if several else 0
    curve = nodes.step_curve(count, payload)
    device = nodes.device
    workers = tuple(
        Worker(index=node, machine=device.machine, device=device.device, seconds=curve)
        for node in range(count)
    )
    size = workload.samples(count)
    if strategy.asynchronous:  # whose steps are one replica's each
        size = max(1, size // count)
    plan = strategy.plan(
        Problem(
            batch_size=size,
            workers=workers,
            network=network,
            element_bytes=workload.element_bytes,
            optimizer_states=OPTIMIZER_STATES[workload.optimizer],
            has_momentum=has_momentum(workload.optimizer),
        )
    )
    taking_part = len(plan.shares)
    whole, steps = strategy.stretch(plan)
    seconds = nodes.seconds()
    step_s = simulate(whole, seconds, nodes.fabric(taking_part)).step_s
    work: defaultdict[int, float] = defaultdict(float)
    for operation in whole:
        if isinstance(operation, Compute):
            work[operation.rank] += seconds(operation)
    return _Played(
        plan=plan,
        step_s=step_s / steps,
        compute_s=max(work.values(), default=0.0) / steps,
        sent_bytes=sum(sent_by_rank(whole, taking_part)) / steps,
    )


def _point(
    played: _Played, count: int, memory: int, strategy: str, base: _Played | None, baseline: int
) -> ScalingPoint:
    rate = played.images_per_s
    exposed_s = max(0.0, played.step_s - played.compute_s)
    return ScalingPoint(
        strategy=strategy,
        nodes=count,
        batch_size=played.plan.problem.batch_size,
        images_per_s=rate,
        efficiency=rate / count / (base.images_per_s / baseline) if base else None,
        step_s=played.step_s,
        compute_s=played.compute_s,
        exposed_comm_s=exposed_s,
        exposed=exposed_s / played.step_s,
        sent_bytes_per_step=played.sent_bytes,
        peak_bytes=memory,
    )


def _too_large(nodes: EqualNodes, count: int, memory: int) -> str:
    profile = nodes.device.profile
    sharing = min(count, nodes.per_host) if profile.device == "cpu" else 1
    if not profile.memory_bytes or memory * sharing <= profile.memory_bytes:
        return ""
    return (
        f"{profile.machine} ({profile.device}) has {profile.memory_bytes / 2**30:.1f} GiB of "
        f"memory, and about {memory * sharing / 2**30:.1f} GiB are needed there. Take more nodes, "
        "or a smaller batch"
    )


def _verdict(strategy: str, points: Iterable[ScalingPoint]) -> str:
    found = list(points)
    if not found:
        return f"{strategy}: none of these numbers of nodes can be had."
    exposed = [p for p in found if p.exposed > EXPOSED_ABOVE]
    hidden = [p for p in found if not exposed or p.nodes < exposed[0].nodes]
    limit = f"{EXPOSED_ABOVE:.0%}"
    if not exposed:
        said = (
            f"communication stays hidden up to {found[-1].nodes:,} nodes: "
            f"{found[-1].exposed:.1%} of a step is exposed there, and {limit} would be too much"
        )
    else:
        before = f", after {hidden[-1].exposed:.1%} at {hidden[-1].nodes:,}" if hidden else ""
        said = (
            f"communication stops being hidden at {exposed[0].nodes:,} nodes: "
            f"{exposed[0].exposed:.1%} of a step is exposed there{before} (hidden is up to {limit})"
        )
    best = max(found, key=lambda p: p.images_per_s)
    return (
        f"{strategy}: {said}. Fastest at {best.nodes:,} nodes: {best.images_per_s:,.0f} images/s."
    )
