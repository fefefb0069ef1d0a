"""torch's stage of a pipeline, whose tensors travel while ranks compute.

torch's schedules ask for a tensor when they are about to wait for it, and Gloo sends nothing before
it is asked for, so that nothing would travel while anything is computed. Here a rank asks for
everything as the step begins, and waits where it needs it. All of it goes through `Comm`, which
counts and times it:

    torch's schedule    forward_one_chunk(0)     get_fwd_send_ops(0)  forward_one_chunk(1)  ...
    here   ask for all ─ wait for maps 0, compute ─ send maps 0 ────── wait for maps 1, compute ...

Each tensor has a tag of its own, since maps and gradients of several stages may come from one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage

from convoy.comm import Comm


class TravellingStage(PipelineStage):
    """torch's, but for how tensors travel."""

    def __init__(self, *args: Any, comm: Comm, sizes: Sequence[int], **kwargs: Any) -> None:
        """As torch's.

        Args:
            comm: what it sends and receives with.
            sizes: samples, by micro-batch.
        """
        super().__init__(*args, **kwargs)
        self._comm, self._sizes = comm, sizes
        self.own: Sequence[TravellingStage] = (self,)
        """All stages of this rank."""
        self._maps: list[Callable[[], Any]] = []
        self._gradients: list[Callable[[], Any]] = []

    def clear_runtime_states(self) -> None:
        """Begin a step."""
        super().clear_runtime_states()
        self._maps, self._gradients = [], []

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Nothing: all is asked for as the step begins."""
        del fwd_chunk_id
        return []

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Nothing: all is asked for as the step begins."""
        del bwd_chunk_id
        return []

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Send maps."""
        tag = self._tag(self.stage_index + 1, "forward", fwd_chunk_id)
        return self._send(super().get_fwd_send_ops(fwd_chunk_id), fwd_chunk_id, tag)

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Send gradients."""
        tag = self._tag(self.stage_index - 1, "backward", bwd_chunk_id)
        return self._send(super().get_bwd_send_ops(bwd_chunk_id), bwd_chunk_id, tag)

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """Wait for the maps, then compute; every step begins with this, of one stage or other."""
        if not self._maps:
            for stage in self.own:
                stage.ask()
        self._maps[fwd_chunk_id]()
        return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> None:
        """Wait for the gradients, then compute."""
        self._gradients[bwd_chunk_id]()
        super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)

    def ask(self) -> None:
        """Ask for all that is to come in this step."""
        maps, gradients = super().get_fwd_recv_ops, super().get_bwd_recv_ops
        self._maps, self._gradients = (
            [
                self._ask(coming, operations, chunk, self._tag(self.stage_index, phase, chunk))
                for chunk in range(len(self._sizes))
            ]
            for phase, coming, operations in (
                ("forward", self.args_recv_info, maps),
                ("backward", self.grad_recv_info, gradients),
            )
        )

    def _tag(self, stage: int, phase: str, chunk: int) -> int:
        """Of what a stage gets for a pass of a micro-batch; 0 is the tag of all else."""
        return 1 + (2 * stage + (phase == "backward")) * len(self._sizes) + chunk

    def _validate_fwd_input(self, *_: Any) -> None:
        """Nothing to check: what travels is made to measure (torch before 2.13 asks)."""

    def _validate_fwd_outputs(self, *_: Any) -> None:
        """Nothing to check: the last stage's output was never described, since it goes nowhere."""

    def _warmup_forward_vote(self, *_: Any, **__: Any) -> Tensor:
        """Whether shapes are known: they are, on every rank, and nothing need travel for it."""
        return torch.ones(1, dtype=torch.int32)

    def _warmup_backward_result(self, *_: Any, **__: Any) -> Tensor:
        return torch.ones(1, dtype=torch.int32)

    def _ask(
        self,
        coming: Mapping[int, Sequence[Any]],
        operations: Callable[[int], list[dist.P2POp]],
        chunk: int,
        tag: int,
    ) -> Callable[[], Any]:
        """Receive what comes of a micro-batch; what it returns waits for that."""
        for info in coming.get(chunk, ()):
            buffer = getattr(info, "buffer", None)  # what comes from outside has none
            if buffer is not None and len(buffer) != self._sizes[chunk]:
                room = buffer.new_empty((self._sizes[chunk], *buffer.shape[1:]))
                info.buffer = room.requires_grad_(buffer.requires_grad)
        waits = [self._comm.receive_async(op.tensor, op.peer, tag) for op in operations(chunk)]

        def wait() -> None:
            for came in waits:
                came()

        return wait

    def _send(self, operations: list[dist.P2POp], chunk: int, tag: int) -> list[dist.P2POp]:
        for operation in operations:
            tensor = operation.tensor[: self._sizes[chunk]].contiguous()
            self._comm.send_async(tensor, operation.peer, tag)
        return []
