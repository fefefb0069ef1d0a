"""What a strategy is: a frozen configuration with three faces.

    plan      who gets how much of the batch                        pure
    schedule  what one step does, as operations                     pure
    run       what one rank does, as a program that yields steps    moves real bytes

`run` is a generator: it owns its loop over `rank.batches` and yields after every step that
is complete. The runtime drives it and does the rest (records, checkpoints, pauses). Since
the published algorithms have no common list of hooks, there is none here: a program says
with `rank.commit` and `rank.evaluate` when the state it leaves is one to go back to and one
to judge.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar, Protocol, final

import torch
from torch import Tensor, nn

from convoy.comm import Comm
from convoy.cost.curve import Curve
from convoy.cost.layers import NetworkFacts
from convoy.cost.memory import kept_activations, peak_bytes
from convoy.cost.schedule import Schedule, in_a_row
from convoy.cost.world import World
from convoy.errors import UsageError
from convoy.strategies.server import ParameterServer, ServerLayout, ServerTerms
from convoy.strategies.shares import finish_together, share_of_each


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One device that may become a rank."""

    index: int
    """Which of the crew's places it is."""
    machine: str
    device: str
    """torch's name: "cpu", "cuda:0"."""
    weight: float = 1.0
    """Speed relative to the others; only proportions matter."""
    seconds: Curve | None = None
    """What a step takes it by its samples, where that was measured; counts more than `weight`."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is to be planned for."""

    batch_size: int
    """Samples per step over all ranks."""
    workers: tuple[Worker, ...]
    network: NetworkFacts
    element_bytes: int = 4
    """Bytes of one parameter: 4 for float32, 8 for float64."""
    optimizer_states: int = 0
    """Tensors of a parameter's size that the optimizer keeps for it."""
    has_momentum: bool = False
    """Whether the optimizer goes on in the direction of former steps."""
    mixed: bool = False
    """Whether feature maps are bfloat16 whatever parameters are."""
    world: World | None = None
    """Where machines and links were measured: a worker's index is its position there."""

    @property
    def map_bytes(self) -> int:
        """Bytes of an element of a feature map."""
        return 2 if self.mixed else self.element_bytes


def shares_for(problem: Problem) -> tuple[int, ...]:
    """Shares with which all workers finish together: measured times' best, else by weight.

    Raises:
        UsageError: there are fewer samples than workers.
    """
    curves = [worker.seconds for worker in problem.workers if worker.seconds is not None]
    if len(curves) == len(problem.workers):
        return finish_together(problem.batch_size, curves)
    return share_of_each(problem.batch_size, [worker.weight for worker in problem.workers])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which workers take part, and each one's samples of a full batch."""

    problem: Problem
    """The problem with only the workers that take part, in order of rank."""
    shares: tuple[int, ...]
    """Samples per step of each rank; their sum is the batch size."""
    kept: Mapping[str, str] = field(default_factory=dict)
    """Layers that could be divided and are not, and why."""

    def __post_init__(self) -> None:
        assert sum(self.shares) == self.problem.batch_size
        assert len(self.shares) == len(self.problem.workers)

    @property
    def portions(self) -> tuple[float, ...]:
        """Each rank's part of the work that is divided; their sum is 1."""
        return tuple(share / self.problem.batch_size for share in self.shares)

    @property
    def exact(self) -> bool:
        """Whether this plan computes what one device would, where its strategy can do so."""
        return True

    @property
    def settled(self) -> dict[str, float | str]:
        """Options of the strategy that the plan decides on, as they came out."""
        return {}

    @property
    def servers(self) -> ServerLayout | None:
        """Of asynchronous training: its parameter servers."""
        return None

    @property
    def divided(self) -> dict[str, tuple[int, ...]]:
        """Of layers that are divided, each rank's filters, neurons or whatever they consist of."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's part of one step."""

    step: int
    inputs: Tensor
    """[n, C, H, W] on the rank's device; one stand-in sample where `samples` is 0."""
    targets: Tensor
    """int64 [n]"""
    samples: int
    """Real samples in `inputs`: n, or 0."""
    step_samples: int
    """Samples of all ranks together."""
    evaluates: bool
    """Whether the network is to be judged after this step."""
    ends_run: bool
    keeps: bool = False
    """Whether a checkpoint is due after this step."""
    ends_lease: bool = False
    """Of asynchronous training: whether this rank may have to wait before it gets another."""


@dataclass(frozen=True, kw_only=True)
class Pending:
    """Work since the last commit that the ranks have not shared yet."""

    samples: int = 0
    """Samples this rank has trained on."""
    step_samples: int = 0
    """Samples all ranks together have trained on."""


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A step is done: all of its updates are in the rank's state."""

    batch: Batch
    loss_sum: Tensor
    """Scalar: the sum of the loss over this rank's real samples."""


Program = Generator[Completed, None, None]
"""What a rank runs: one value per step."""


@dataclass(kw_only=True)
class Equipment:
    """What a network is trained with, on one device."""

    comm: Comm
    device: torch.device
    model: nn.Module
    optimizer: torch.optim.Optimizer
    example: Batch
    """Real samples that belong to no step, for trying the model out."""
    loss: Callable[[nn.Module, Batch], Tensor]
    """Sum of the loss over the batch's real samples (0, still differentiable, if none)."""


class Parts(Protocol):
    """Of a rank that holds parts of the network: which, and how all of it is brought together."""

    @property
    def own(self) -> frozenset[str]:
        """What it holds, by its names in the network's state."""

    def whole(self) -> AbstractContextManager[None]:
        """Within it every rank has all of the network. All ranks enter it together."""


@dataclass(kw_only=True)
class Rank(Equipment):
    """What `run` gets to work with: this rank's place, state and services."""

    plan: Plan
    batches: Iterator[Batch]
    """Ends when the run is complete, or pauses; its last batch is then the last step."""
    update: Callable[[Batch, Tensor], None]
    """Check the loss, set the step's learning rate, and let the optimizer apply the gradients."""
    learning_rate: Callable[[Batch, Tensor], float]
    """Check the loss, and say the step's learning rate, to a program that updates elsewhere."""
    commit: Callable[[int, bool], None]
    """`commit(step, copy)`: every rank now holds the same state, with all steps before `step`
    done, and it is what to go on from if a peer is lost. `copy` keeps a copy of it, which a
    program needs whose state will differ between ranks until its next commit."""
    forgo: Callable[[], None]
    """As `commit`, but this rank keeps nothing to go on from. Others do; it saves the memory."""
    diverge: Callable[[Pending], None]
    """`diverge(pending)`: as `commit`, but ranks' states now differ, and what to go on
    from stays the last commit."""
    evaluate: Callable[[int], None]
    """`evaluate(step)`: judge `model` on this rank's part of the test set, after `step`."""
    regroups: Callable[[], bool]
    """Once `batches` has ended: whether that is because the crew is about to re-form. A
    program whose ranks' states differ brings them together then, or their work is lost."""
    first_step: int = 0
    pending: Pending
    """Not empty only for a rank that goes on from a checkpoint of its own."""
    server: ParameterServer | None = None
    """Of asynchronous training: where parameters are."""
    parts: Parts | None = None
    """A program of asynchronous training sets it, if its ranks do not hold the whole network."""


class Strategy(ABC):
    """A way to distribute training. Subclasses are final, frozen keyword-only dataclasses.

    Their fields are the strategy's own options; `metadata={"help": ...}` describes each on the
    command line.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for a list of strategies."""
    uses_several: ClassVar[bool] = True
    """Whether more than one device takes part."""
    exact: ClassVar[bool] = True
    """Whether it computes what one device would, so that `auto` may choose it unasked."""
    proven: ClassVar[bool] = True
    """Whether what is predicted of it has been held against runs; `auto` chooses no other."""
    exchanges_gradients: ClassVar[bool] = False
    """Whether every step ends in an exchange of gradients."""
    asynchronous: ClassVar[bool] = False
    """Whether it has `terms`."""
    customary_optimizer: ClassVar[str] = "sgd"
    """Used where no --optimizer is given."""
    rebalances: ClassVar[bool] = False
    """Whether a step lasts as long as its slowest rank, `plan` uses every worker there is, and
    shares may change between any two steps: the crew then cuts them anew as machines change."""

    parts_state: ClassVar[bool] = False
    """Whether each rank trains a part of the state between commits. Its ranks send to one another
    directly, which Gloo does for tensors on the host, whatever devices there are."""
    measures: ClassVar[bool] = False
    """Whether it cannot be planned well without figures of every layer, so that machines are
    measured even where it is asked for by name."""

    takes_profile: ClassVar[bool] = False
    """Whether it is planned by a profile where one is given; so are all that need one."""

    @property
    def needs_layers(self) -> bool:
        """As `measures`, with the options that it has."""
        return self.measures

    def period(self, plan: Plan) -> tuple[int, int]:
        """Steps that stand for all: the first of them, and after how many the next are alike."""
        del plan
        return 0, 1

    def terms(self, plan: Plan) -> ServerTerms | None:
        """Of asynchronous training, whose ranks are replicas over parameter servers, each at its
        own pace: nobody forms a crew then, and steps are leased. None of all else."""
        del plan
        return None

    def stretch(self, plan: Plan) -> tuple[Schedule, int]:
        """A stretch of training that stands for all of it, and how many steps it has."""
        first, count = self.period(plan)
        schedules = [self.schedule(plan, first + i) for i in range(count)]
        return schedules[0] if count == 1 else in_a_row(schedules), count

    def activations(self, plan: Plan) -> tuple[int, ...]:
        """Elements of feature maps that each rank holds at the end of its forward pass."""
        return tuple(kept_activations(plan.problem.network, share) for share in plan.shares)

    def parameters(self, plan: Plan) -> tuple[int, ...]:
        """Trainable parameters that each rank trains, and holds while it does."""
        return (plan.problem.network.num_parameters,) * len(plan.shares)

    def copies(self, plan: Plan) -> tuple[bool, ...]:
        """Whether each rank keeps a copy of the whole state, as of the last commit."""
        return (self.parts_state,) * len(plan.shares)

    @final
    def peak_bytes(self, plan: Plan) -> tuple[int, ...]:
        """What each rank holds where it holds most; see `convoy.cost.memory`."""
        problem = plan.problem
        differ = self.period(plan)[1] > 1 and len(plan.shares) > 1

        @cache  # of a thousand ranks, many are alike
        def bytes_of(samples: int, activations: int, parameters: int, copies: bool) -> int:
            return peak_bytes(
                problem.network,
                samples,
                activations=activations,
                optimizer_states=problem.optimizer_states,
                element_bytes=problem.element_bytes,
                parameters=parameters,
                copies_state=copies or differ,
            )

        parts = (self.activations(plan), self.parameters(plan), self.copies(plan))
        return tuple(bytes_of(*rank) for rank in zip(plan.shares, *parts, strict=True))

    @abstractmethod
    def plan(self, problem: Problem) -> Plan:
        """Decide who takes part and with how much. Raises UsageError where it cannot."""

    @abstractmethod
    def schedule(self, plan: Plan, step: int) -> Schedule:
        """What a full-batch `step` does, counted from 0."""

    @abstractmethod
    def run(self, rank: Rank) -> Program:
        """Train: one yielded value per completed step.

        Closed where the run ends early: what it holds of `rank.comm` has to be let go of then.
        """


@dataclass(frozen=True, kw_only=True)
class PartingStrategy(Strategy):
    """One whose ranks each train a part of the state (`parted_state.train_in_parts`)."""

    parts_state: ClassVar[bool] = True
    measures: ClassVar[bool] = True
    takes_profile: ClassVar[bool] = True

    snapshot_every: int = field(
        default=100, metadata={"help": "steps after which all ranks get the whole state"}
    )
    """At most so many steps are repeated when a rank dies."""

    def __post_init__(self) -> None:
        if type(self.snapshot_every) is not int or self.snapshot_every < 1:
            raise UsageError(f"--snapshot-every {self.snapshot_every}: expected 1 or more steps")
