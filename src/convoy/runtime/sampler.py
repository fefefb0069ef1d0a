"""One global order of samples, whoever takes part.

The permutation of an epoch depends on (seed, epoch) alone. Step s of an epoch takes the next
`batch_size` samples of it, and the ranks cut that slice by their integer shares:

    permutation   | step 0          | step 1          | ... | last step, shorter |
    ranks         | 0  | 1     | 2  | 0  | 1     | 2  |     | 0 | 1   | 2        |

So which samples make up a step never depends on how many machines there are, and a crew
that re-forms in the middle of an epoch continues in the same order with other shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from convoy.errors import UsageError
from convoy.strategies.shares import cut


def derive_seed(*parts: int) -> int:
    """A 63-bit seed that depends on all of `parts`; neighbours give unrelated seeds.

    SplitMix64's finaliser (Steele, Lea & Flood 2014) over each part in turn.
    """
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The part of one step that one rank takes."""

    step: int
    """Global step, counted from 0 over all epochs."""
    epoch: int
    first: int
    """Position in the epoch's order of this rank's first sample."""
    indices: Tensor
    """int64 [samples]: which samples of the training set."""
    step_first: int
    """Position in the epoch's order of the whole step's first sample."""
    step_samples: int
    """Samples that all ranks together take in this step."""


class GlobalOrder:
    """The order in which a run of `num_samples`-sample epochs visits its samples."""

    def __init__(self, *, num_samples: int, batch_size: int, seed: int) -> None:
        if not 0 < batch_size <= num_samples:
            raise UsageError(
                f"batch size {batch_size} does not fit a training set of {num_samples} samples: "
                f"expected 1 to {num_samples}"
            )
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = -(-num_samples // batch_size)

    def epoch_of(self, step: int) -> int:
        """The epoch that `step` belongs to, from 0."""
        return step // self.steps_per_epoch

    def samples_before(self, step: int) -> int:
        """How many samples the steps before `step` use, over all epochs."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return epoch * self.num_samples + within * self.batch_size

    def step_bounds(self, step: int) -> tuple[int, int]:
        """First and one-past-last position of `step` in its epoch's order."""
        first = (step % self.steps_per_epoch) * self.batch_size
        return first, min(first + self.batch_size, self.num_samples)

    def slice(self, step: int, shares: Sequence[int], rank: int) -> Slice:
        """What `rank` takes of `step` when ranks' full-batch shares are `shares`."""
        first, last = self.step_bounds(step)
        parts = _parts(last - first, tuple(shares))
        mine = first + sum(parts[:rank])
        epoch = self.epoch_of(step)
        order = _permutation(self.num_samples, self.seed, epoch)
        return Slice(
            step=step,
            epoch=epoch,
            first=mine,
            indices=order[mine : mine + parts[rank]],
            step_first=first,
            step_samples=last - first,
        )


@lru_cache(maxsize=64)
def _parts(count: int, shares: tuple[int, ...]) -> list[int]:
    return cut(count, shares)


@lru_cache(maxsize=2)
def _permutation(num_samples: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    return torch.randperm(num_samples, generator=generator)
