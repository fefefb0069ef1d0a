"""`hybrid`: data parallel convolutions, dense layers split by their neurons.

    rank 0   load ─ conv, its samples ─┬─ fc, its neurons, all samples ─┬─ loss ─ ... ─ update
                                       ║ maps in, outputs back          ║
    rank 1   load ─ conv, its samples ─┴─ fc, its neurons, all samples ─┴─ loss ─ ... ─ update

Convolutions have most of the work and few weights: they are shared by samples, and the gradients
travel. Dense layers have most of the weights and little work: their neurons are shared, in
proportion to speed, and what travels is maps: each rank gets the inputs of all samples, computes
its neurons for them, and sends everyone the outputs of their samples; the backward pass goes the
same way. Gradients of the split layers never travel, and each rank trains its own neurons only.

`exchange` says how the samples of all are computed: `gather`, all at once, or `turns`, those of
one rank after another, with the next under way meanwhile. Every `snapshot_every` steps, and
wherever a checkpoint or an evaluation is due, all ranks are given the whole state; the first
keeps a copy of it, which the crew goes on from if a rank dies.

Source: A. Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014,
section 4: schemes (a) and (b) are `gather` and `turns`; here each rank begins with its own
samples, for which it need not wait. Sakiyama et al. use the same division on CPUs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from convoy.comm import peer_loss
from convoy.cost.schedule import Compute, Schedule
from convoy.cost.simulate import simulate
from convoy.errors import UnknownNameError, UsageError
from convoy.strategies.base import Batch, PartingStrategy, Plan, Problem, Program, Rank
from convoy.strategies.dense_exchange import DenseExchange
from convoy.strategies.dense_shares import SplitLayer, samples_beside, splits
from convoy.strategies.hybrid_drawing import sketch_of
from convoy.strategies.parted_state import PartedState, train_in_parts
from convoy.strategies.passes import Drawing, draw_passes
from convoy.strategies.replica import replicated

EXCHANGES = ("gather", "turns")


@dataclass(frozen=True, kw_only=True)
class HybridPlan(Plan):
    """Who has which samples, and which neurons of the split layers."""

    layers: tuple[SplitLayer, ...]
    """Dense layers that are split."""

    @property
    def divided(self) -> dict[str, tuple[int, ...]]:
        """Neurons."""
        return {layer.name: layer.neurons for layer in self.layers}


@dataclass(frozen=True, kw_only=True)
class HybridParallel(PartingStrategy):
    """Data parallelism for convolutions, model parallelism for dense layers."""

    name: ClassVar[str] = "hybrid"
    summary: ClassVar[str] = "as data, but the neurons of dense layers are divided by speed"
    exchanges_gradients: ClassVar[bool] = True

    exchange: Literal["gather", "turns"] = field(
        default="turns", metadata={"help": "turns or gather: how dense layers get all samples"}
    )
    """One rank's samples after another, the next under way meanwhile; or all at once."""
    dense_above: int | Literal["auto"] = field(
        default="auto", metadata={"help": "dense layers with more weights are split; auto: planned"}
    )
    """`auto`: as many of the largest as make the shortest step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exchange not in EXCHANGES:
            raise UnknownNameError("--exchange", str(self.exchange), EXCHANGES)
        if self.dense_above != "auto" and (
            type(self.dense_above) is not int or self.dense_above < 0
        ):
            raise UsageError(
                f"--dense-above {self.dense_above}: expected a number of weights, or auto"
            )

    def plan(self, problem: Problem) -> HybridPlan:
        """Split the dense layers with which a step is shortest; share samples by the rest.

        Raises:
            UsageError: no dense layer to split, or fewer samples than devices.
        """
        above = None if self.dense_above == "auto" else int(self.dense_above)
        plans = [self._with(problem, layers) for layers in splits(problem, above)]
        return plans[0] if len(plans) == 1 else min(plans, key=self._step_s)

    def _with(self, problem: Problem, layers: tuple[SplitLayer, ...]) -> HybridPlan:
        names = {layer.name for layer in layers}
        whole = [size.name for size in problem.network.layers if size.neurons]
        return HybridPlan(
            problem=problem,
            shares=samples_beside(problem, layers),
            layers=layers,
            kept={
                name: "its gradients cost less than its maps would"
                if self.dense_above == "auto"
                else f"it has no more than {self.dense_above} weights"
                for name in whole
                if layers and name not in names
            },
        )

    def _step_s(self, plan: HybridPlan) -> float:
        world = plan.problem.world
        assert world is not None  # else there is one plan only
        picks = tuple(worker.index for worker in plan.problem.workers)
        return simulate(self.schedule(plan, 0), world.seconds(picks), world.fabric(picks)).step_s

    def activations(self, plan: Plan) -> tuple[int, ...]:
        """A rank's own maps, and of split layers the inputs of all samples and what it makes."""
        assert isinstance(plan, HybridPlan)
        held = list(super().activations(plan))
        sizes = {size.name: size for size in plan.problem.network.layers}
        for layer in plan.layers:
            size = sizes[layer.name]
            for rank, share in enumerate(plan.shares):
                held[rank] += (plan.problem.batch_size - share) * size.inputs
                held[rank] += int(plan.problem.batch_size * size.activations * layer.part(rank))
        return tuple(held)

    def parameters(self, plan: Plan) -> tuple[int, ...]:
        """All but the neurons of others."""
        assert isinstance(plan, HybridPlan)
        held = [plan.problem.network.num_parameters] * len(plan.shares)
        sizes = {size.name: size for size in plan.problem.network.layers}
        for layer in plan.layers:
            whole = sum(sizes[layer.name].parameters)
            for rank in range(len(held)):
                held[rank] -= whole - round(whole * layer.part(rank))
        return tuple(held)

    def copies(self, plan: Plan) -> tuple[bool, ...]:
        """The first rank's."""
        return tuple(rank == 0 for rank in range(len(plan.shares)))

    def schedule(self, plan: Plan, step: int) -> Schedule:
        """As `data`, but for the split layers."""
        del step  # every step is alike
        assert isinstance(plan, HybridPlan)
        problem, drawing = plan.problem, Drawing()
        several = len(plan.shares) > 1
        sketch = sketch_of(problem, plan.shares, drawing, in_turns=self.exchange == "turns")
        last, reductions = draw_passes(
            drawing,
            problem.network,
            plan.shares,
            gradient_bytes=problem.element_bytes if several else 0,
            synchronises_batch_norm=several,
            otherwise=sketch.layers(plan.layers),
        )
        updated = [part / max(1, problem.network.num_parameters) for part in self.parameters(plan)]
        for rank, part in enumerate(updated):
            after = (*last[rank], *reductions)
            drawing.add(Compute(rank=rank, phase="update", samples=0, part=part, after=after))
        return drawing.schedule()

    def run(self, rank: Rank) -> Program:
        """The user's own passes, in which split layers are computed by all ranks."""
        plan = rank.plan
        assert isinstance(plan, HybridPlan)
        exchange = DenseExchange(rank, plan.layers, in_turns=self.exchange == "turns")
        parted = PartedState(rank, exchange.rows, rest_is_common=True)
        with replicated(rank, leave_out=list(exchange.rows)) as model:

            def step(batch: Batch) -> Tensor:
                with exchange.of(batch), peer_loss():
                    loss_sum = rank.loss(model, batch)
                    (loss_sum / batch.step_samples).backward()
                rank.comm.settle()
                rank.comm.finish()
                return loss_sum

            yield from train_in_parts(
                *(rank, parted, step),
                snapshot_every=self.snapshot_every,
                keeps_copy=rank.comm.rank == 0,
            )
