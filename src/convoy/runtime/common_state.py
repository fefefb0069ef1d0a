"""The state that a rank goes back to if a peer is lost: that of the last commit.

commit ──▶ steps of which ranks share the outcome at once: restored by undoing buffers only
   └─────▶ steps that a rank does alone: restored from a copy
"""

from __future__ import annotations

import torch
from torch import nn

from convoy import state
from convoy.strategies import Pending


class CommonState:
    """A rank's last commit."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model, self._optimizer = model, optimizer
        self.step: int | None = None
        """All steps before it are in the common state; None: this rank has none."""
        self.pending = Pending()
        """What has been done since, and is not shared."""
        self._copy: state.Tensors | None = None
        self._buffers: state.Tensors = {}

    def commit(self, step: int, *, copy: bool) -> None:
        """What there is now is common to all, with all steps before `step` in it.

        Args:
            copy: keep a copy, since what is trained from now on may not be undone otherwise.
        """
        self.step, self.pending = step, Pending()
        self._copy = None  # its memory first
        self._copy = state.copy_of(state.pack(self._model, self._optimizer)) if copy else None
        self._buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}

    def forgo(self) -> None:
        """Keep nothing: others do."""
        self.step, self._copy, self._buffers = None, None, {}
        self.pending = Pending()

    @torch.no_grad()
    def restore(self) -> None:
        """Undo what an unfinished step, or steps alone, changed since the last commit."""
        if self.step is None:
            return
        if self._copy is not None:
            state.load(self._model, self._optimizer, self._copy)
        else:
            for name, buffer in self._model.named_buffers():
                buffer.copy_(self._buffers[name])
