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

Between fetches a replica goes on with weights of its own, which plain SGD moves (as in algorithm
7.1). Batch normalisation takes each replica's own statistics, and each keeps running ones.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

from convoy.cost.memory import kept_activations
from convoy.cost.schedule import Compute, Operation, Schedule, Transfer
from convoy.errors import UsageError
from convoy.strategies.accrual import Accrued, descend
from convoy.strategies.base import Completed, Plan, Problem, Program, Rank, Strategy
from convoy.strategies.parameter_shards import divide, num_elements
from convoy.strategies.passes import layers_or_whole
from convoy.strategies.push_codec import Wire, parse_wire
from convoy.strategies.server import ServerTerms
from convoy.strategies.shares import cut

STEPS_EACH = 4
"""Of the slowest replica, in the stretch of time that is simulated."""
MOST_STEPS = 96
"""Of all replicas together there, unless one each is more."""
WORTH_OVERLAPPING = 0.15
"""Of a step's computation: an exchange that takes more of it is overlapped with the next."""
MOST_SHARDS = 8
"""That are made unasked."""


@dataclass(frozen=True, kw_only=True)
class DownpourPlan(Plan):
    """Replicas and shards."""

    servers: tuple[int, ...]
    """By shard: the rank on whose machine it is."""
    sizes: tuple[int, ...]
    """By shard: elements."""
    depth: int
    """Pushes that may be unanswered while a replica computes on."""
    speeds: tuple[float, ...]
    """By rank: steps per second, or in proportion to them."""

    @property
    def homes(self) -> tuple[int, ...]:
        """As `servers`."""
        return self.servers

    @property
    def portions(self) -> tuple[float, ...]:
        """Each replica's part of all steps, as foreseen; their sum is 1."""
        total = sum(self.speeds)
        return tuple(speed / total for speed in self.speeds)

    @property
    def settled(self) -> dict[str, int | str]:
        """How many shards there are."""
        return {"shards": len(self.homes), "in_flight": self.depth}

    @cached_property
    def takers(self) -> tuple[int, ...]:
        """Which replica takes which of the steps of a stretch, if each is as fast as foreseen."""
        slowest = min(self.portions)
        each = max(1.0, min(STEPS_EACH, MOST_STEPS * slowest))
        count = sum(max(1, round(each * portion / slowest)) for portion in self.portions)
        # Each is free again after one step of its own; the next step goes to whoever is first.
        free = [(1 / portion / 2, rank) for rank, portion in enumerate(self.portions)]
        heapq.heapify(free)
        takers = []
        for _ in range(count):
            at, rank = heapq.heappop(free)
            takers.append(rank)
            heapq.heappush(free, (at + 1 / self.portions[rank], rank))
        return tuple(takers)


@dataclass(frozen=True, kw_only=True)
class Downpour(Strategy):
    """Asynchronous SGD over a sharded parameter server."""

    name: ClassVar[str] = "downpour"
    summary: ClassVar[str] = "replicas fetch from and push to parameter servers, each at its pace"
    exact: ClassVar[bool] = False
    asynchronous: ClassVar[bool] = True
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
    snapshot_s: int = field(
        default=30, metadata={"help": "seconds between snapshots of the parameter servers"}
    )

    def __post_init__(self) -> None:
        for name, least in (
            *(("fetch_every", 1), ("push_every", 1), ("warm_start", 0)),
            *(("snapshot_s", 1),),
        ):
            self._require_number(name, least)
        if self.in_flight != "auto":
            self._require_number("in_flight", 0, "auto")
        if self.shards != "auto":
            self._require_number("shards", 1, "auto")
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
    def bound(self) -> int | None:
        """How many versions a push may be behind."""
        return None if self.max_staleness == "none" else int(self.max_staleness)

    @property
    def encoding(self) -> Wire:
        """What travels."""
        return parse_wire(self.wire)

    def terms(self, plan: Plan) -> ServerTerms | None:
        """What it asks of its servers."""
        assert isinstance(plan, DownpourPlan)
        return self.terms_of(plan.depth)

    def terms_of(self, depth: int) -> ServerTerms:
        """As `terms`, with so many pushes in flight."""
        return ServerTerms(
            bound=self.bound,
            staleness_scaled=self.staleness_scaled == "yes",
            depth=depth,
            wire=self.encoding,
            window=math.lcm(self.push_every, self.fetch_every),
            warm_start=self.warm_start,
            snapshot_s=self.snapshot_s,
        )

    def plan(self, problem: Problem) -> Plan:
        """Everyone is a replica; shards go to the fastest replicas' machines, one on each."""
        size = problem.batch_size
        if all(worker.seconds for worker in problem.workers):
            speeds = [1 / w.seconds(size) if w.seconds else 1.0 for w in problem.workers]
        else:
            speeds = [worker.weight for worker in problem.workers]
        machines: dict[str, int] = {}
        of_machine: dict[str, float] = {}
        for rank in sorted(range(len(speeds)), key=lambda rank: -speeds[rank]):
            name = problem.workers[rank].machine
            machines.setdefault(name, rank)
            of_machine[name] = of_machine.get(name, 0.0) + speeds[rank]
        homes = list(machines.values())
        shapes = _shapes(problem)
        if self.shards == "auto":
            rows = sum(shape[0] if shape else 1 for shape in shapes.values())
            count = min(rows, _num_shards([of_machine[name] for name in machines]))
        else:
            count = int(self.shards)
        sizes = tuple(num_elements(shard) for shard in divide(shapes, count))
        servers = tuple(homes[shard % len(homes)] for shard in range(count))
        return DownpourPlan(
            problem=problem,
            shares=tuple(cut(size, speeds)),
            speeds=tuple(speeds),
            servers=servers,
            sizes=sizes,
            depth=self._depth(problem, servers, sizes),
        )

    def _depth(self, problem: Problem, servers: tuple[int, ...], sizes: tuple[int, ...]) -> int:
        """Pushes that may be unanswered; none where staleness is bounded.

        What is computed before the answer has come is of weights that a bound cannot wait for. And
        where an exchange takes little of a step, older weights are not worth what is saved.
        """
        if self.bound is not None:
            return 0
        if self.in_flight != "auto":
            return int(self.in_flight)
        world, wire, width = problem.world, self.encoding, problem.element_bytes
        if world is None or len(problem.workers) == 1:
            return 0
        worst = 0.0
        for worker in problem.workers:
            if worker.seconds is None:
                continue
            host, taken = world.devices[worker.index].host, 0.0
            for server, elements in zip(servers, sizes, strict=True):
                home = world.devices[problem.workers[server].index].host
                size = wire.push_bytes(elements, width) / self.push_every
                size += wire.fetch_bytes(elements, width) / self.fetch_every
                if home != host:
                    taken += size / world.bandwidths[host, home]
            worst = max(worst, taken / worker.seconds(problem.batch_size))
        return 1 if worst > WORTH_OVERLAPPING else 0

    def activations(self, plan: Plan) -> tuple[int, ...]:
        """Elements of feature maps that each replica holds: those of a whole batch."""
        problem = plan.problem
        return (kept_activations(problem.network, problem.batch_size),) * len(plan.shares)

    def schedule(self, plan: Plan, step: int) -> Schedule:
        """What one replica does in one step, the one that takes it: fetch, compute, push."""
        assert isinstance(plan, DownpourPlan)
        replica = plan.takers[step % len(plan.takers)]
        drawing: list[Operation] = []
        self._draw_step(drawing, plan, replica, step, ())
        return tuple(drawing)

    def stretch(self, plan: Plan) -> tuple[Schedule, int]:
        """Steps of all replicas side by side, each at its own pace."""
        assert isinstance(plan, DownpourPlan)
        operations: list[Operation] = []
        done: dict[int, int] = {}
        ready: dict[int, list[tuple[int, ...]]] = {}
        depth = plan.depth if len(plan.shares) > 1 else 0
        for step, replica in enumerate(plan.takers):
            earlier = ready.setdefault(replica, [])
            # what a step begins with: the last computation, and the answer `depth` pushes ago
            after = tuple(earlier[-1][:1]) if earlier else ()
            if len(earlier) > depth:
                after += earlier[-1 - depth][1:]
            number = done.get(replica, 0)
            earlier.append(self._draw_step(operations, plan, replica, number, after, step))
            done[replica] = number + 1
        return tuple(operations), len(plan.takers)

    def _draw_step(
        self,
        drawing: list[Operation],
        plan: DownpourPlan,
        replica: int,
        number: int,
        after: tuple[int, ...],
        step: int = 0,
    ) -> tuple[int, ...]:
        """Draw a replica's step `number`; its last computation, and its answers."""
        problem, size = plan.problem, plan.problem.batch_size
        layers = layers_or_whole(problem.network)

        def compute(phase: Literal["load", "forward", "backward"], layer: str) -> None:
            nonlocal after
            drawing.append(
                Compute(
                    rank=replica, phase=phase, samples=size, layer=layer, step=step, after=after
                )
            )
            after = (len(drawing) - 1,)

        compute("load", "")
        for layer in layers:
            compute("forward", layer.name)
        for layer in reversed(layers):
            compute("backward", layer.name)
        last = after[0]
        pushes, fetches = (number + 1) % self.push_every == 0, (number + 1) % self.fetch_every == 0
        answers = []
        total, width, wire = sum(plan.sizes), problem.element_bytes, self.encoding
        for home, elements in zip(plan.homes, plan.sizes, strict=True):
            arrived = last
            if pushes:
                drawing.append(
                    Transfer(
                        source=replica,
                        destination=home,
                        payload_bytes=wire.push_bytes(elements, width),
                        after=(last,),
                    )
                )
                drawing.append(
                    Compute(
                        rank=home,
                        phase="update",
                        samples=0,
                        part=elements / total,
                        step=step,
                        after=(len(drawing) - 1,),
                    )
                )
                arrived = len(drawing) - 1
            if fetches:
                drawing.append(
                    Transfer(
                        source=home,
                        destination=replica,
                        payload_bytes=wire.fetch_bytes(elements, width),
                        after=(arrived,),
                    )
                )
                arrived = len(drawing) - 1
            if pushes or fetches:
                answers.append(arrived)
        return (last, *answers)

    def run(self, rank: Rank) -> Program:
        """Be one replica: compute, push, fetch, for as long as there are batches."""
        server = rank.server
        assert server is not None
        accrued = Accrued(rank.model)
        taken = 0
        for batch in rank.batches:
            taken += 1
            loss_sum = rank.loss(rank.model, batch)
            (loss_sum / batch.samples).backward()
            lr = rank.learning_rate(batch, loss_sum)
            fetches = taken % self.fetch_every == 0 or batch.ends_lease
            own = accrued.add(batch.samples)
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


def _num_shards(speeds: Sequence[float]) -> int:
    """How many shards keep the busiest machine's link least busy; of about equals, the fewest.

    With S shards on the S fastest machines each has an S-th of the parameters. A machine's link
    brings it the pushes of all others to its shard, and what its replicas fetch from other shards;
    what it sends is as much.

    Args:
        speeds: steps per second of each machine's replicas, the fastest first.
    """
    total = sum(speeds)

    def busiest(count: int) -> float:
        with_shard = max((total - s) / count + s * (count - 1) / count for s in speeds[:count])
        return max([with_shard, *speeds[count:]])

    loads = {count: busiest(count) for count in range(1, min(len(speeds), MOST_SHARDS) + 1)}
    return min(count for count, load in loads.items() if load <= 1.1 * min(loads.values()))


def _shapes(problem: Problem) -> dict[str, tuple[int, ...]]:
    """Trainable parameters; as one, where nobody knows more of them than how many there are."""
    return dict(problem.network.shapes) or {"": (problem.network.num_parameters,)}
