"""`filter`: one rank runs the network; the filters of its convolutions are divided among all.

    rank 0   load ─ conv1, its filters ─ join ─ dense ... loss ─ conv1's gradients ─ sum ─ update
               ║         ▲                            ║         ▲
             maps       maps of                   gradients    gradients of the maps
               ▼       its filters                    ▼        that it was sent
    rank 1     conv1, its filters                     conv1's gradients ─────────────── update

Each nn.Conv2d's filters are divided so that all ranks end together, by how long that very layer
takes each of them. Maps go out first, then the first rank computes its own part, then it takes
in the others': transfers and computation overlap. In the backward pass a helper first computes
the gradient of the maps, which is waited for, and that of its filters while it travels. Layers
after a convolution that act on each channel alone move to the helpers with it (`fuse`): a 2x2
pooling quarters what comes back.

Filters stay where they are used, and so does what the optimizer keeps for them. Every
`snapshot_every` steps, and wherever a checkpoint or an evaluation is due, all ranks get the
whole state: that is what the crew goes on from if one of them dies.

Source: J. Marques, G. Falcao and L. A. Alexandre, "Distributed learning of CNNs on heterogeneous
CPU/GPU architectures", 2018, sections 4 and 5. There the master sends the filters anew for every
batch (`resident=no`), and shares are by one benchmark of each device.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from torch import Tensor

from convoy.cost.layers import LayerSize
from convoy.cost.schedule import Compute, Schedule, Transfer
from convoy.errors import UnknownNameError
from convoy.strategies.base import Batch, PartingStrategy, Plan, Problem, Program, Rank
from convoy.strategies.convolution_helper import Helper
from convoy.strategies.convolution_lead import Lead
from convoy.strategies.filter_shares import HEADER_BYTES, SharedLayer, Terms, divide
from convoy.strategies.parted_state import PartedState, train_in_parts
from convoy.strategies.passes import Drawing, layers_or_whole

WIRES = ("fp32", "bf16")
YES_NO = ("yes", "no")


@dataclass(frozen=True, kw_only=True)
class FilterPlan(Plan):
    """The whole batch on the first rank, and who computes which filters."""

    layers: tuple[SharedLayer, ...]
    """Convolutions whose filters are divided."""

    @property
    def divided(self) -> dict[str, tuple[int, ...]]:
        """Filters."""
        return {layer.name: layer.filters for layer in self.layers}

    @property
    def portions(self) -> tuple[float, ...]:
        """Parts of the divided work, by multiply-adds."""
        done = [0.0] * len(self.shares)
        for layer in self.layers:
            for rank, filters in enumerate(layer.filters):
                done[rank] += layer.work * filters / sum(layer.filters)
        total = sum(done)
        return tuple(part / total for part in done) if total else super().portions


@dataclass(frozen=True, kw_only=True)
class FilterParallel(PartingStrategy):
    """Distribution of only the convolutions, in proportion to speed."""

    name: ClassVar[str] = "filter"
    summary: ClassVar[str] = "each convolution's filters are divided by speed; the first rank leads"

    wire: Literal["fp32", "bf16"] = field(
        default="fp32", metadata={"help": "fp32 or bf16 between ranks"}
    )
    """What feature maps travel as: in their own precision, or bfloat16 (half the bytes)."""
    fuse: Literal["yes", "no"] = field(
        default="yes", metadata={"help": "yes or no: channelwise layers run where filters are"}
    )
    """Whether layers that act on each channel alone run where their convolution's filters are."""
    resident: Literal["yes", "no"] = field(
        default="yes", metadata={"help": "yes or no: filters stay where they are used"}
    )
    """`no`: the first rank sends the filters with every batch and updates all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.wire not in WIRES:
            raise UnknownNameError("--wire", str(self.wire), WIRES)
        if self.fuse not in YES_NO:
            raise UnknownNameError("--fuse", str(self.fuse), YES_NO)
        if self.resident not in YES_NO:
            raise UnknownNameError("--resident", str(self.resident), YES_NO)

    def plan(self, problem: Problem) -> FilterPlan:
        """Divide each convolution so that all end together; the fastest device leads.

        Raises:
            UsageError: no convolution to divide, or fewer filters than devices.
        """
        led = self._led(problem)
        layers, kept = divide(led, self._terms)
        return FilterPlan(
            problem=led,
            shares=(problem.batch_size,) + (0,) * (len(led.workers) - 1),
            layers=layers,
            kept=kept,
        )

    @property
    def _terms(self) -> Terms:
        return Terms(
            narrow=self.wire == "bf16", fuse=self.fuse == "yes", resident=self.resident == "yes"
        )

    def _led(self, problem: Problem) -> Problem:
        """The problem with the device first that takes least for the whole network."""
        if problem.world is None:  # whoever is there, in their order
            return problem
        whole = [problem.world.devices[w.index].whole(problem.batch_size) for w in problem.workers]
        first = whole.index(min(whole))
        others = [w for i, w in enumerate(problem.workers) if i != first]
        return replace(problem, workers=(problem.workers[first], *others))

    def activations(self, plan: Plan) -> tuple[int, ...]:
        """The first rank holds all maps; a helper what it was sent and what it made of it."""
        assert isinstance(plan, FilterPlan)
        held = list(super().activations(plan))
        sizes = {layer.name: layer for layer in plan.problem.network.layers}
        for shared in plan.layers:
            size = sizes[shared.name]
            for rank, filters in enumerate(shared.filters[1:], 1):
                made = size.activations * filters // size.filters
                held[rank] += plan.problem.batch_size * (size.inputs + made) if filters else 0
        return tuple(held)

    def schedule(self, plan: Plan, step: int) -> Schedule:
        """Forward, backward and update, with each divided convolution's transfers."""
        del step  # every step is alike
        assert isinstance(plan, FilterPlan)
        return _Sketch(plan, self._terms).draw()

    def run(self, rank: Rank) -> Program:
        """The first rank runs the network; the others compute what they are sent."""
        plan = rank.plan
        assert isinstance(plan, FilterPlan)
        side = (Lead if rank.comm.rank == 0 else Helper)(rank, plan.layers, self._terms)

        def step(batch: Batch) -> Tensor:
            with side:
                return side.step(batch)

        parted = PartedState(rank, side.rows)
        return train_in_parts(rank, parted, step, snapshot_every=self.snapshot_every)


class _Sketch:
    """A step's schedule in the making."""

    def __init__(self, plan: FilterPlan, terms: Terms) -> None:
        self._plan, self._terms = plan, terms
        self._drawing = Drawing()
        self._layers = layers_or_whole(plan.problem.network)
        self._sizes = {layer.name: layer for layer in self._layers}
        self._shared = {layer.name: layer for layer in plan.layers}
        self._elsewhere = {name for layer in plan.layers for name in layer.tail}
        """Layers that are computed with the convolution before them."""
        self._batch = plan.problem.batch_size
        self._ready: list[tuple[int, ...]] = [()] * len(plan.shares)
        """What each helper has to have done before it begins something."""

    def draw(self) -> Schedule:
        drawing = self._drawing
        last: tuple[int, ...] = (self._compute(0, "load", ()),)
        for layer in self._layers:
            if layer.name in self._shared:
                last = self._forward(layer, last)
            elif layer.name not in self._elsewhere:
                last = (self._compute(0, "forward", last, layer.name),)
        for layer in reversed(self._layers):
            if layer.name in self._shared:
                last = self._backward(layer, last)
            elif layer.name not in self._elsewhere:
                last = (self._compute(0, "backward", last, layer.name),)
        for rank in range(1, len(self._plan.shares)):
            sent = self._send(0, rank, HEADER_BYTES, last)
            self._ready[rank] += (sent,)
        own = self._parameters()
        for rank, part in enumerate(own):
            after = last if rank == 0 else self._ready[rank]
            drawing.add(Compute(rank=rank, phase="update", samples=0, part=part, after=after))
        return drawing.schedule()

    def _forward(self, layer: LayerSize, last: tuple[int, ...]) -> tuple[int, ...]:
        shared = self._shared[layer.name]
        came: list[int] = []
        maps = self._maps(layer.inputs)
        made = self._maps(self._made(layer, shared))
        for rank, part in shared.helpers():
            size = HEADER_BYTES + maps + self._filters_bytes(layer, shared.filters[rank])
            sent = self._send(0, rank, size, last)
            done = (*self._ready[rank], sent)
            for name in (layer.name, *shared.tail):
                done = (self._compute(rank, "forward", done, name, part),)
            back = made * shared.filters[rank] // layer.filters
            came.append(self._send(rank, 0, back, done))
            self._ready[rank] = done
        for name in (layer.name, *shared.tail):
            last = (self._compute(0, "forward", last, name, shared.part(0)),)
        return (*last, *came)

    def _backward(self, layer: LayerSize, last: tuple[int, ...]) -> tuple[int, ...]:
        shared = self._shared[layer.name]
        came: list[int] = []
        made = self._maps(self._made(layer, shared))
        for rank, part in shared.helpers():
            size = HEADER_BYTES + made * shared.filters[rank] // layer.filters
            done: tuple[int, ...] = (*self._ready[rank], self._send(0, rank, size, last))
            for name in reversed(shared.tail):
                done = (self._compute(rank, "backward", done, name, part),)
            back = self._filters_bytes(layer, shared.filters[rank])
            if layer.input_gradient:
                done = (self._compute(rank, "backward", done, layer.name, part, 0.5),)
                came.append(self._send(rank, 0, self._maps(layer.inputs), done))
                done = (self._compute(rank, "backward", done, layer.name, part, 0.5),)
            else:
                done = (self._compute(rank, "backward", done, layer.name, part),)
            if back:
                came.append(self._send(rank, 0, back, done))
            self._ready[rank] = done
        for name in (*reversed(shared.tail), layer.name):
            last = (self._compute(0, "backward", last, name, shared.part(0)),)
        return (*last, *came)

    def _parameters(self) -> list[float]:
        """Which part of all parameters each rank updates."""
        network = self._plan.problem.network
        held = [0.0] * len(self._plan.shares)
        divided = 0
        if self._terms.resident:
            for shared in self._plan.layers:
                size = sum(sum(self._sizes[n].parameters) for n in (shared.name, *shared.tail))
                divided += size
                for rank in range(len(held)):
                    held[rank] += size * shared.part(rank)
        held[0] += network.num_parameters - divided
        return [part / max(1, network.num_parameters) for part in held]

    def _compute(
        self,
        rank: int,
        phase: Literal["load", "forward", "backward"],
        after: tuple[int, ...],
        layer: str = "",
        part: float = 1.0,
        portion: float = 1.0,
    ) -> int:
        return self._drawing.add(
            Compute(
                rank=rank,
                phase=phase,
                samples=self._batch,
                layer=layer,
                part=part,
                portion=portion,
                after=after,
            )
        )

    def _send(self, source: int, destination: int, size: int, after: tuple[int, ...]) -> int:
        return self._drawing.add(
            Transfer(source=source, destination=destination, payload_bytes=size, after=after)
        )

    def _made(self, layer: LayerSize, shared: SharedLayer) -> int:
        last = shared.tail[-1] if shared.tail else layer.name
        return self._sizes[last].activations

    def _maps(self, elements: int) -> int:
        """Bytes of so many elements of each sample's maps."""
        return self._batch * elements * self._terms.map_bytes(self._plan.problem.map_bytes)

    def _filters_bytes(self, layer: LayerSize, filters: int) -> int:
        """Bytes of filters, where they travel with every batch."""
        if self._terms.resident:
            return 0
        return sum(layer.parameters) * filters // layer.filters * self._plan.problem.element_bytes
