"""State of which each rank has a part while it trains, and all of it in between.

    whole on every rank ──part──▶ own rows of some tensors ──train──▶ join ──▶ whole on every rank

A tensor is cut along its first dimension: a convolution's filters, a dense layer's neurons, and
what an optimizer keeps for each of them. One that is whole on one rank has all its rows there; a
single number counts as one row. What is not cut belongs to the first rank, or to all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from convoy import state
from convoy.strategies.base import Batch, Completed, Equipment, Pending, Program, Rank

GROUP_BYTES = 32 * 1024**2
"""About so much of what is parted is joined at once: few messages, and little held twice."""


class PartedState:
    """A rank's network and optimizer, parted or whole."""

    def __init__(
        self,
        rank: Equipment,
        rows: Mapping[str, tuple[int, ...]],
        *,
        rest_is_common: bool = False,
        copies: int = 1,
    ) -> None:
        """Leave everything whole.

        Args:
            rank: whose network, optimizer and comm they are.
            rows: of tensors by their names in the network's state, how many rows of its first
                dimension each rank has.
            rest_is_common: every rank has what is not cut, and the same of it.
            copies: how often it is there: so many groups of ranks that follow one another have it
                all between them, alike. `rows` is of the ranks of one group then.
        """
        self._model, self._optimizer = rank.model, rank.optimizer
        self._comm, self._device = rank.comm, rank.device
        self._first = state.first_names(rank.model)
        self._rows = {self._first[name]: counts for name, counts in rows.items()}
        self._rest_is_common = rest_is_common
        self._group = rank.comm.world_size // copies
        """Ranks that have all of it between them; the first of them hand it out."""
        self._place = rank.comm.rank % self._group
        self._forms: dict[str, Tensor] = {}
        """Shape and layout of parted tensors when they are whole, without content."""

    @property
    def is_whole(self) -> bool:
        """Whether every tensor has its full shape."""
        return not self._forms

    @property
    def own(self) -> frozenset[str]:
        """Tensors of the network's state that this rank has, rows of them at least.

        Those that are not cut are the first rank's.
        """
        return frozenset(
            name
            for name, first in self._first.items()
            if (
                bool(self._rows[first][self._place])
                if first in self._rows
                else self._place == 0 or self._rest_is_common
            )
        )

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Within it every rank has all rows, of all tensors. Blocks; all ranks take part."""
        self.join()
        try:
            yield
        finally:
            self.part()

    @torch.no_grad()
    def part(self) -> None:
        """Keep this rank's rows only."""
        if not self.is_whole:
            return
        tensors = self._tensors()
        for name, counts in self._rows.items():
            tensor = tensors[name]
            full = tensor.data
            self._forms[name] = full.to("meta")
            if not tensor.dim():
                continue
            own = slice(sum(counts[: self._place]), sum(counts[: self._place + 1]))
            kept = self._optimizer.state.get(tensor, {})
            for key, value in kept.items():
                if isinstance(value, Tensor) and value.shape == full.shape:
                    kept[key] = value[own].clone()
            tensor.data = full[own].clone()

    def join(self) -> None:
        """Give every rank all rows, of all tensors. Blocks; all ranks take part."""
        for names in list(self._groups()):
            self._join(names)
        if not self._rest_is_common:
            rest = self._rest() if self._comm.rank == 0 else None
            rest = state.hand_over(self._comm, rest, 0, self._device)
            if self._comm.rank:
                state.put(self._model, self._optimizer, rest)

    def _join(self, names: list[str]) -> None:
        hands_out = self._comm.rank < self._group
        parts = self._exchanged(self._packed(names) if hands_out else {})
        self._release(names)
        for name in dict.fromkeys(name for part in parts for name in part):
            pieces = [part[name] for part in parts if name in part]
            cut = self._is_cut(name, pieces[0]) and len(pieces) > 1
            whole = {name: torch.cat(pieces) if cut else pieces[0]}
            state.put(self._model, self._optimizer, whole)

    def release(self) -> None:
        """Give every tensor its full shape; what is in those that were parted is lost."""
        self._release(list(self._forms))

    def _groups(self) -> Iterator[list[str]]:
        """Parted tensors, some at a time, in the same order on every rank."""
        group: list[str] = []
        size = 0
        for name, form in self._forms.items():
            group.append(name)
            size += form.nbytes
            if size >= GROUP_BYTES:
                yield group
                group, size = [], 0
        if group:
            yield group

    def _exchanged(self, mine: state.Tensors) -> list[state.Tensors]:
        """What each rank has, by rank."""
        return [
            state.hand_over(
                self._comm, mine if source == self._comm.rank else None, source, self._device
            )
            for source in range(self._group)
        ]

    def _packed(self, names: list[str]) -> state.Tensors:
        """This rank's rows of these tensors, with what its optimizer keeps for them."""
        return {
            n: t
            for n, t in state.pack(self._model, self._optimizer).items()
            if (o := _owner(n)) in names and self._rows[o][self._place]
        }

    def _rest(self) -> state.Tensors:
        """What is not cut, each tensor by its first name."""
        packed = state.pack(self._model, self._optimizer)
        return {n: t for n, t in packed.items() if self._first[_owner(n)] not in self._rows}

    def _release(self, names: list[str]) -> None:
        tensors = self._tensors()
        for name in names:
            tensors[name].data = torch.empty_like(self._forms.pop(name), device=self._device)

    def _is_cut(self, name: str, tensor: Tensor) -> bool:
        """Whether a packed tensor has rows; the count of updates, say, has none."""
        return bool(tensor.dim()) and _owner(name) in self._rows

    def _tensors(self) -> dict[str, Tensor]:
        return dict(self._model.named_parameters()) | dict(self._model.named_buffers())


def _owner(name: str) -> str:
    """The tensor of the network's state that a packed tensor is, or is kept for."""
    kind, _, owner = name.partition("/")
    return owner.rpartition("/")[0] if kind == "optimizer" else owner


def train_in_parts(
    rank: Rank,
    parted: PartedState,
    step: Callable[[Batch], Tensor],
    *,
    snapshot_every: int,
    keeps_copy: bool = True,
) -> Program:
    """Steps with parted state, and all of it on every rank where somebody wants to see it.

    Args:
        step: forward and backward pass; returns the sum of the loss over the rank's samples.
        snapshot_every: steps after which all ranks are given the whole state in any case, which
            the crew goes on from if a rank dies.
        keeps_copy: whether this rank keeps a copy of it.
    """

    next_step, pending = rank.first_step, Pending()
    rank.commit(next_step, keeps_copy)
    try:
        for batch in rank.batches:
            if parted.is_whole and not keeps_copy:
                rank.forgo()
            parted.part()
            loss_sum = step(batch)
            rank.update(batch, loss_sum)
            pending = Pending(
                samples=pending.samples + batch.samples,
                step_samples=pending.step_samples + batch.step_samples,
            )
            next_step = batch.step + 1
            rank.diverge(pending)
            if batch.evaluates or batch.keeps or next_step % snapshot_every == 0:
                parted.join()
                pending = Pending()
                rank.commit(next_step, keeps_copy)
            if batch.evaluates:
                rank.evaluate(batch.step)
            yield Completed(batch=batch, loss_sum=loss_sum)
        if not parted.is_whole:
            parted.join()
        rank.commit(next_step, False)
    finally:
        parted.release()
