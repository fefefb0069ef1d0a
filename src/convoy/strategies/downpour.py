"""`downpour`: replicas train on their own and meet at a sharded parameter server, asynchronously.

    shard 0   ▁▁▁▁▁▁▁▁▁▁░▁▁▁▁▁▁▁▁░▁▁▁▁▁▁▁▁░▁▁▁▁         ░ a push is applied, as it arrives
                  fetch ╱  ╲ push    ╱  ╲
    replica 0   ██forward██▓▓backward▓▓ ██forward██▓▓backward▓▓ ...      its own pace
    replica 1   ████████forward████████▓▓▓▓▓▓▓▓backward▓▓▓▓▓▓▓▓ ...      its own pace

Downpour SGD of DistBelief (Dean et al. 2012, section 4.1, and algorithm 7.1 of its appendix). Each
replica fetches weights, takes a batch out of the global order, and pushes its gradient; the shards,
which hold a part of the parameters each, apply it with a learning rate that adapts to each
parameter (Adagrad, as there). Nobody waits for a slower replica: it simply takes fewer batches. The
price is that a gradient is of weights some versions old. `update_gate.py` bounds that where it is
asked to.

A replica may be a pipeline of several devices (`replica_devices`; section 3 there): each has a
part of the network, and talks to the shards that hold it.

Between fetches a replica goes on with weights of its own, which plain SGD moves (as in algorithm
7.1). Batch normalisation takes each replica's own statistics, and each keeps running ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from convoy.cost.memory import kept_activations
from convoy.cost.schedule import Schedule
from convoy.errors import UsageError
from convoy.strategies.accrual import Accrued, descend
from convoy.strategies.base import Batch, Completed, Plan, Problem, Program, Rank, Strategy
from convoy.strategies.downpour_drawing import Sketch
from convoy.strategies.downpour_plan import (
    KIND,
    DownpourPlan,
    Teams,
    pipelines,
    single_devices,
)
from convoy.strategies.parameter_shards import num_elements
from convoy.strategies.parted_state import PartedState
from convoy.strategies.pipeline_drawing import parameters_by_place
from convoy.strategies.pipeline_stages import activations_by_place
from convoy.strategies.push_codec import Wire, parse_wire
from convoy.strategies.server import WORTH_OVERLAPPING, ServerLayout, ServerTerms
from convoy.strategies.server_layout import lay_out
from convoy.strategies.shares import cut
from convoy.strategies.staleness import mean_staleness, within_bound


@dataclass(frozen=True, kw_only=True)
class Downpour(Strategy):
    """Asynchronous SGD over a sharded parameter server."""

    name: ClassVar[str] = "downpour"
    summary: ClassVar[str] = "replicas fetch from and push to parameter servers, each at its pace"
    exact: ClassVar[bool] = False
    asynchronous: ClassVar[bool] = True
    takes_profile: ClassVar[bool] = True
    customary_optimizer: ClassVar[str] = "adagrad"

    shards: int | Literal["auto"] = field(
        default="auto",
        metadata={"help": "parameter servers, or auto: as few as keep links least busy"},
    )
    fetch_every: int = field(default=1, metadata={"help": "steps between fetches of weights"})
    push_every: int = field(default=1, metadata={"help": "steps whose gradients go in one push"})
    warm_start: int = field(
        default=0, metadata={"help": "steps that one replica does before the others join"}
    )
    max_staleness: int | Literal["none"] = field(
        default="none", metadata={"help": "versions that a push may be behind; 0 is synchronous"}
    )
    staleness_scaled: Literal["yes", "no"] = field(
        default="no", metadata={"help": "yes or no: divide a push's step by its staleness"}
    )
    in_flight: int | Literal["auto"] = field(
        default="auto",
        metadata={"help": "pushes that may be unanswered while a replica computes on, or auto"},
    )
    wire: str = field(
        default="fp32", metadata={"help": "fp32 or bf16 between ranks; downpour also topk:0.01"}
    )
    replica_devices: int = field(
        default=1, metadata={"help": "devices of each replica, which is a pipeline if several"}
    )
    micro_batches: int | Literal["auto"] = field(
        default="auto", metadata={"help": "into how many parts a batch is cut; auto: planned"}
    )
    """In a replica of several devices."""
    snapshot_s: int = field(
        default=30, metadata={"help": "seconds between snapshots of the parameter servers"}
    )

    def __post_init__(self) -> None:
        for name, least in (
            *(("fetch_every", 1), ("push_every", 1), ("warm_start", 0)),
            *(("snapshot_s", 1), ("replica_devices", 1)),
        ):
            self._require_number(name, least)
        if self.in_flight != "auto":
            self._require_number("in_flight", 0, "auto")
        for name in ("shards", "micro_batches"):
            if getattr(self, name) != "auto":
                self._require_number(name, 1, "auto")
        if self.micro_batches != "auto" and self.replica_devices == 1:
            raise UsageError(
                f"--micro-batches {self.micro_batches}: a replica of one device takes batches "
                "whole. Give --replica-devices as well, or leave --micro-batches out"
            )
        if self.staleness_scaled not in ("yes", "no"):
            raise UsageError(f"--staleness-scaled {self.staleness_scaled}: expected yes or no")
        parse_wire(self.wire)
        if self.max_staleness != "none":
            self._require_number("max_staleness", 0, "none")
            if self.fetch_every > self.push_every:
                raise UsageError(
                    f"--max-staleness {self.max_staleness} with --fetch-every {self.fetch_every} "
                    f"and --push-every {self.push_every}: between two fetches a replica's own "
                    "pushes would make it stale. Fetch at least as often as you push, or leave "
                    "--max-staleness out"
                )

    def _require_number(self, name: str, least: int, otherwise: str = "") -> None:
        value = getattr(self, name)
        if type(value) is not int or value < least:
            flag, other = "--" + name.replace("_", "-"), f", or {otherwise}" if otherwise else ""
            raise UsageError(f"{flag} {value}: expected a whole number of {least} or more{other}")

    @property
    def needs_layers(self) -> bool:
        """A pipeline is cut by what its layers take."""
        return self.replica_devices > 1

    @property
    def bound(self) -> int | None:
        """How many versions a push may be behind."""
        return None if self.max_staleness == "none" else int(self.max_staleness)

    @property
    def encoding(self) -> Wire:
        """What travels."""
        return parse_wire(self.wire)

    def terms(self, plan: Plan) -> ServerTerms:
        """What it asks of its servers."""
        assert isinstance(plan, DownpourPlan)
        undecided = self.in_flight == "auto" and self.bound is None and len(plan.speeds) > 1
        return ServerTerms(
            bound=self.bound,
            staleness_scaled=self.staleness_scaled == "yes",
            depth=plan.depth,
            deepens=undecided and not plan.problem.has_momentum,
            wire=self.encoding,
            window=math.lcm(self.push_every, self.fetch_every),
            warm_start=self.warm_start,
            snapshot_s=self.snapshot_s,
        )

    def plan(self, problem: Problem) -> DownpourPlan:
        """Everyone is a replica, or part of one; shards go to the fastest replicas' machines.

        Raises:
            UsageError: replicas of so many devices, or so many shards, cannot be.
        """
        if self.replica_devices == 1:
            return self._plan(single_devices(problem))
        micro_batches = None if self.micro_batches == "auto" else self.micro_batches
        found = pipelines(problem, self.replica_devices, micro_batches)
        plans = [self._plan(teams) for teams in found]
        return plans[0] if problem.world is None else min(plans, key=self._cost)

    def _plan(self, teams: Teams) -> DownpourPlan:
        replicas, size = teams.replicas, teams.problem.batch_size
        layout = lay_out(teams.problem.network, replicas, self.shards, teams.place_of)
        speeds, depth = replicas.speeds, self._depth(teams, layout)
        staleness = mean_staleness(
            len(speeds), fetches_every=self.fetch_every / self.push_every, depth=depth
        )
        if self.bound is not None:
            speeds, staleness = within_bound(speeds, self.bound)
        shares = [
            share if place == 0 else 0
            for share in cut(size, speeds)
            for place in range(replicas.team)
        ]
        return DownpourPlan(
            problem=teams.problem,
            shares=tuple(shares),
            layout=layout,
            depth=depth,
            speeds=speeds,
            staleness=staleness,
            stages=teams.stages,
            micro_batches=teams.micro_batches,
        )

    def _cost(self, plan: DownpourPlan) -> tuple[bool, float]:
        world = plan.problem.world
        assert world is not None  # else nobody compares
        picks = tuple(worker.index for worker in plan.problem.workers)
        return bool(world.shortage(picks, self.peak_bytes(plan))), -sum(plan.speeds)

    def _depth(self, teams: Teams, layout: ServerLayout) -> int:
        """Pushes that may be unanswered, as far as is known; none where staleness is bounded.

        What is computed before the answer has come is of weights that a bound cannot wait for. And
        where an exchange takes little of a step, older weights are not worth what is saved. Nor are
        they with momentum, which asynchrony adds to (Mitliagkas et al. 2016): at usual rates
        training diverges that does not without.
        """
        if self.bound is not None:
            return 0
        if self.in_flight != "auto":
            return int(self.in_flight)
        problem, wire, workers = teams.problem, self.encoding, teams.problem.workers
        world, width = problem.world, problem.element_bytes
        if world is None or not teams.measured or len(workers) == 1 or problem.has_momentum:
            return 0
        worst = 0.0
        for rank, worker in enumerate(workers):
            replica, place = divmod(rank, layout.team)
            host, taken = world.devices[worker.index].host, 0.0
            for shard in layout.shards_of(place):
                home = world.devices[workers[layout.homes[shard]].index].host
                elements = num_elements(layout.pieces[shard])
                size = wire.push_bytes(elements, width) / self.push_every
                size += wire.fetch_bytes(elements, width) / self.fetch_every
                if home != host:
                    taken += size / world.bandwidths[host, home]
            worst = max(worst, taken * teams.replicas.speeds[replica])
        return 1 if worst > WORTH_OVERLAPPING else 0

    def activations(self, plan: Plan) -> tuple[int, ...]:
        """Elements of feature maps that each device holds: of a whole batch, of its layers."""
        assert isinstance(plan, DownpourPlan)
        network, size = plan.problem.network, plan.problem.batch_size
        if plan.team == 1:
            return (kept_activations(network, size),) * len(plan.shares)
        by_place = activations_by_place(
            network, plan.stages, plan.team, size, plan.micro_batches, KIND
        )
        return by_place * len(plan.speeds)

    def parameters(self, plan: Plan) -> tuple[int, ...]:
        """Those of each device's part of the network."""
        assert isinstance(plan, DownpourPlan)
        if plan.team == 1:
            return super().parameters(plan)
        by_place = parameters_by_place(plan.problem.network, plan.stages, plan.team)
        return by_place * len(plan.speeds)

    def schedule(self, plan: Plan, step: int) -> Schedule:
        """What one replica does in one step, the one that takes it: fetch, compute, push."""
        return self._sketch(plan).step(step, step)

    def stretch(self, plan: Plan) -> tuple[Schedule, int]:
        """Steps of all replicas side by side, each at its own pace."""
        sketch = self._sketch(plan)
        return sketch.stretch(), len(sketch.plan.takers)

    def _sketch(self, plan: Plan) -> Sketch:
        assert isinstance(plan, DownpourPlan)
        return Sketch(
            plan=plan,
            wire=self.encoding,
            push_every=self.push_every,
            fetch_every=self.fetch_every,
        )

    def run(self, rank: Rank) -> Program:
        """Be a replica, or part of one: compute, push, fetch, for as long as there are batches."""
        plan = rank.plan
        assert isinstance(plan, DownpourPlan)
        if plan.team == 1:

            def whole(batch: Batch) -> Tensor:
                loss_sum = rank.loss(rank.model, batch)
                (loss_sum / batch.samples).backward()
                return loss_sum

            yield from self._train(rank, whole)
            return
        # It brings much of torch along, which takes seconds and only ranks want.
        from convoy.strategies.pipeline_rank import PipelineRank

        with PipelineRank(rank, plan.stages, (1,), plan.micro_batches, KIND) as own:
            parted = PartedState(rank, own.rows)
            parted.part()
            rank.parts = parted
            try:
                yield from self._train(rank, own.step)
            finally:
                rank.parts = None
                parted.release()

    def _train(self, rank: Rank, step: Callable[[Batch], Tensor]) -> Program:
        """Steps, whose gradients `step` leaves where they belong, and exchanges after them."""
        server = rank.server
        assert server is not None
        accrued = Accrued(rank.model)
        taken = 0
        for batch in rank.batches:
            taken += 1
            loss_sum = step(batch)
            lr = rank.learning_rate(batch, loss_sum)
            fetches = taken % self.fetch_every == 0 or batch.ends_lease
            own = accrued.add(batch.step_samples)
            if not fetches:
                descend(rank.model, own, lr)
            if taken % self.push_every == 0 or batch.ends_lease:
                server.exchange(accrued.taken(lr), fetch=fetches)
            elif fetches:
                server.exchange(None, fetch=True)
            if batch.ends_lease:
                taken = 0
            server.settle()
            yield Completed(batch=batch, loss_sum=loss_sum)
        server.finish()
