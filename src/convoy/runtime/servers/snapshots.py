"""Snapshots of all shards on disk: checkpoints like those of every other strategy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convoy.errors import CheckpointError, DivergedError
from convoy.runtime.checkpoint import Checkpoint, write_checkpoint
from convoy.runtime.formation import Part
from convoy.runtime.servers.served_run import ServedRun
from convoy.runtime.servers.shard import ShardState
from convoy.runtime.servers.shard_handle import Progress
from convoy.runtime.servers.whole import whole_of
from convoy.runtime.settings import to_values
from convoy.state import Tensors, broken
from convoy.version import __version__


@dataclass
class Snapshots:
    """Writes those of one run, and knows which is the newest good one."""

    served: ServedRun
    kept: Checkpoint | None = None
    """The newest that is on disk."""
    _has_risen: bool = False

    def whole(self, network: Tensors, states: Sequence[ShardState], progress: Progress) -> Tensors:
        """All tensors of a training state.

        Args:
            network: whatever no shard holds.

        Raises:
            DivergedError: a parameter is not finite any more.
        """
        tensors = whole_of(network, self.served.layout.pieces, states)
        if name := broken(tensors):
            raise DivergedError(
                f"{name.removeprefix('model/')} is no longer finite after {progress.low} steps. "
                f"Try a lower --lr, or a bound on staleness (--max-staleness). {self.last_good()}"
            )
        return tensors

    def write(
        self, tensors: Tensors, versions: Sequence[int], progress: Progress, *, last: bool = False
    ) -> None:
        """Write one, unless the loss has risen since the one before.

        Args:
            versions: of the shards, in their order.
            last: nothing comes after it, so that it is written anyhow, and what fails is an error.

        Raises:
            CheckpointError: it is the last, and cannot be written.
        """
        if self._is_worse() and not last:
            return
        checkpoint = Checkpoint(
            step=progress.low,
            generation=self.served.generation,
            parts=(Part(tensors=tensors),),
            meta={
                "convoy": __version__,
                "layout": progress.layout,
                "shares": list(progress.shares),
                "settings": to_values(self.served.job.settings),
                "servers": {"versions": list(versions), "done": list(progress.beyond)},
            },
        )
        log, settings = self.served.log, self.served.job.settings
        try:
            if not log.flush():  # the records that a checkpoint covers come before it
                raise CheckpointError("there is no room for the records of a snapshot's steps")
            write_checkpoint(log.folder.checkpoints, checkpoint, keep=settings.keep)
        except CheckpointError as error:
            if last:
                raise
            self.served.observer.say(
                f"{error}. Training goes on; the servers' snapshot is in memory only",
                "warning",
            )
        else:
            self.kept = checkpoint

    def _is_worse(self) -> bool:
        """Whether a snapshot is not worth having beside the one before; says so once."""
        risen, before = self.served.log.risen, self._has_risen
        self._has_risen = risen is not None
        if risen is not None and not before:
            best, now = risen
            self.served.observer.say(
                f"the loss has risen from {best:.3g} to {now:.3g}: no snapshot is written until it "
                f"is lower again. {self.last_good()}",
                "warning",
            )
        return self._has_risen

    def last_good(self) -> str:
        """Which snapshot there is to go back to, in words."""
        if self.kept is None:
            return "There is no snapshot yet: start again"
        return (
            f"The last good snapshot is that of step {self.kept.step}: go on from it with a lower "
            f"--lr and --resume {self.served.log.folder.path}"
        )

    def how_to_go_on(self) -> str:
        """What a user can do when the run has ended too early."""
        if self.kept is None:
            return "There is no snapshot yet: start the run again"
        return f"Go on from the newest snapshot with --resume {self.served.log.folder.path}"
