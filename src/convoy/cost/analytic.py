"""Closed forms for what the simulator plays: convolutions, communication, a step, speed-up.

Chavan & Kulkarni give their cost model of a parallel CNN as equations (5) to (8): the work of a
convolution layer, the time of communication, the time of execution, the speed-up. The functions
here are those four, derived from first principles in a notation of our own. The paper's print
was not at hand, so its misprints are not listed one by one; where a form below differs from a
printed one, ours is what follows from the operations themselves. What is held to here:

- a convolution has all of samples, filters, *output* positions, input channels and *both* sides of
  the kernel as factors; without the channels, or with the input's positions, it is another number;
- a backward pass has two convolutions' work, the gradient of the weights and that of the input;
  the first layer, whose input nobody differentiates, has one;
- communication is added to the time of a step after the work was divided; it is not divided with
  it, and it is none for one worker;
- speed-up is the time of one worker over the time of all, not the other way round;
- bandwidths are bytes a second here, and links are sold in bits.

One step of p equal workers whose exchange begins when all gradients are there:

    T(p) = t_s + t_p / p + 2 (p - 1) (l + B / (p W))           S(p) = T(1) / T(p)

with t_s seconds that every worker spends, t_p seconds that are shared, B payload bytes, W bytes/s
and l seconds of latency. The simulator plays the same to the last digit; where the exchange
overlaps the backward pass, T(p) is what a step takes at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from convoy.cost.schedule import Compute
from convoy.cost.world import World


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A convolution layer; sides are (height, width)."""

    in_channels: int
    filters: int
    kernel: tuple[int, int]
    image: tuple[int, int]
    stride: int = 1
    padding: int = 0

    @property
    def output(self) -> tuple[int, int]:
        """Positions of the output: floor((side + 2 padding - kernel) / stride) + 1."""
        height, width = (
            (side + 2 * self.padding - kernel) // self.stride + 1
            for side, kernel in zip(self.image, self.kernel, strict=True)
        )
        return height, width


def convolution_macs(layer: Convolution, samples: int = 1) -> int:
    """Multiply-adds of a forward pass: samples x filters x positions x channels x kernel.

    The first half of what stands as equation (5); see the module's text.
    """
    per_output = layer.in_channels * math.prod(layer.kernel)
    return samples * layer.filters * math.prod(layer.output) * per_output


def convolution_s(
    layer: Convolution, samples: int, flops: float, *, needs_input_gradient: bool = True
) -> float:
    """Seconds of a convolution's forward and backward pass at `flops` operations a second.

    Equation (5): one convolution forward, one for the weights' gradient, and one for the input's
    if anybody needs that; a multiply-add is two operations.
    """
    passes = 3 if needs_input_gradient else 2
    return 2 * passes * convolution_macs(layer, samples) / flops


def communication_s(
    payload_bytes: float, workers: int, bandwidth_bytes_s: float, latency_s: float = 0.0
) -> float:
    """Seconds of a ring all-reduce of `payload_bytes` over `workers`, one to a host.

    Equation (6), for the exchange that Convoy has: 2 (p - 1) rounds, each of a message of B / p
    bytes (Patarasuk & Yuan 2009, section 3). None for one worker.
    """
    rounds = 2 * (workers - 1)
    return rounds * (latency_s + payload_bytes / workers / bandwidth_bytes_s)


def execution_s(serial_s: float, parallel_s: float, workers: int, exchange_s: float = 0.0) -> float:
    """Seconds of a step: equation (7), what each does + what is shared / p + communication.

    Args:
        serial_s: what every worker does in full, as the update of all parameters is.
        parallel_s: what one worker takes for the whole batch.
        exchange_s: communication among `workers`, that nothing hides.
    """
    return serial_s + parallel_s / workers + exchange_s


def speed_up(alone_s: float, together_s: float) -> float:
    """Equation (8): how many times as fast, T(1) / T(p)."""
    return alone_s / together_s


def amdahl_bound(serial_s: float, parallel_s: float, workers: float) -> float:
    """The most that `workers` can speed a step up by, were communication free (Amdahl 1967).

    (t_s + t_p) / (t_s + t_p / p); 1 / (t_s / (t_s + t_p)) as p grows without end.

    Args:
        serial_s: seconds that no worker can take from another.
        parallel_s: seconds that can be shared.
        workers: as many times a single one's speed as all have together; `inf` for no end.

    Raises:
        ValueError: times below 0, none at all, or fewer workers than one.
    """
    if serial_s < 0 or parallel_s < 0 or serial_s + parallel_s <= 0:
        raise ValueError(f"serial {serial_s} s and parallel {parallel_s} s: expected 0 or more")
    if not workers >= 1:
        raise ValueError(f"{workers} workers: expected 1 or more")
    together = serial_s + parallel_s / workers
    return math.inf if together == 0 else (serial_s + parallel_s) / together


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The most that some devices can do together, were communication free."""

    serial_s: float
    """Of a step of the fastest device alone: its update."""
    parallel_s: float
    """Of the same: loading, forward and backward of the whole batch."""
    workers: float
    """All devices' speed together, as multiples of the fastest one's."""
    speed_up: float
    """Over the fastest device alone."""
    step_s: float
    """What a step takes at least."""


def bound_of(world: World, picks: Sequence[int], batch_size: int) -> Bound:
    """Amdahl's bound for `batch_size` samples on the picked devices, unequal as they are.

    Speeds are those at the whole batch, while so many devices work at once. A device that is faster
    per sample with fewer of them, as where a batch outgrows its cache, may beat this bound; one
    that is slower falls short of it.
    """
    steps = [world.step_curve(pick, len(picks))(batch_size) for pick in picks]
    seconds = world.seconds(picks)
    updates = [seconds(Compute(rank=rank, phase="update", samples=0)) for rank in range(len(picks))]
    shared = [step - update for step, update in zip(steps, updates, strict=True)]
    fastest = min(range(len(picks)), key=lambda i: shared[i] + updates[i])
    workers = sum(shared[fastest] / own for own in shared)
    gain = amdahl_bound(updates[fastest], shared[fastest], max(1.0, workers))
    return Bound(
        serial_s=updates[fastest],
        parallel_s=shared[fastest],
        workers=workers,
        speed_up=gain,
        step_s=(updates[fastest] + shared[fastest]) / gain,
    )
