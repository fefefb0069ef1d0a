"""The orders that ranks get and the reports that they give: data only.

driver ── Job, once ─▶ rank          what to build
driver ── Formation ─▶ rank          train from here, with these peers and shares
rank ── records, evaluations, checkpoint parts ─▶ Sink ─▶ driver
rank ── Outcome ─▶ driver            how its part in the formation ended
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import nn

from convoy import state
from convoy.runtime.settings import TrainSettings
from convoy.strategies import Pending, Plan, Strategy

NOTHING_PENDING = Pending()


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every rank of a run is built from."""

    settings: TrainSettings
    strategy: Strategy | None
    """None until the planner has chosen it (`auto`)."""
    network: str | nn.Module | Callable[..., nn.Module]
    dataset: Any
    """Whatever `convoy.datasets.open_dataset` takes."""
    weights: state.Tensors | None = None
    """What every rank's network starts from; None for first weights."""

    @property
    def decided(self) -> Strategy:
        """The strategy, which is decided by now."""
        assert self.strategy is not None
        return self.strategy

    def backend(self, plan: Plan) -> str:
        """NCCL where every rank has a GPU and tensors stay there; Gloo, which moves all, else."""
        on_gpus = all(worker.device.startswith("cuda") for worker in plan.problem.workers)
        return "nccl" if on_gpus and not self.decided.parts_state else "gloo"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One rank's contribution to a checkpoint, or what it goes on from."""

    tensors: state.Tensors
    pending: Pending = NOTHING_PENDING


@dataclass(frozen=True, kw_only=True)
class Formation:
    """One rank's orders for the time until the crew next changes."""

    generation: int
    rank: int
    plan: Plan
    machines: tuple[str, ...]
    first_step: int
    backend: str
    part: Part | None = None
    """What this rank loads first; None to keep what it has."""
    source_rank: int | None = 0
    """The rank whose state all others then take over; None where each keeps its own."""
    layout: str | None = None
    """The memory format in use; None to choose it now."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a rank's part in a formation ended."""

    kind: Literal["finished", "stopped", "peer lost"]
    step: int | None
    """All steps before it are in the rank's state; None: the state is no common one."""
    detail: str = ""


class Sink(Protocol):
    """Takes what a rank reports, as it goes along."""

    def record(self, record: dict[str, Any]) -> None:
        """One completed step of this rank."""

    def layout(self, name: str) -> None:
        """The memory format that the ranks chose."""

    def convolutions(self, rank: int, algorithms: dict[str, str]) -> None:
        """By layer, what this rank computes otherwise than by torch's own."""

    def evaluation(self, sums: dict[str, Any]) -> None:
        """This rank's part of an evaluation."""

    def checkpoint(self, step: int, generation: int, part: Part, *, rank: int, whole: bool) -> None:
        """State at the boundary before `step`; `whole` if it stands for every rank."""
