"""Into which micro-batches a batch is cut, and in which order a device computes its passes.

    gpipe   F0 F1 F2 F3 ──── B0 B1 B2 B3    all forward, then all backward
    1f1b    F0 F1 ── B0 F2 B1 F3 B2 B3      backward as soon as can be: fewer maps are held

With several stages on each device, here a and b, both have a form of their own:

    gpipe   Fa0 Fa1 Fa2 Fa3 Fb0 Fb1 Fb2 Fb3 ── Bb3 Bb2 Bb1 Bb0 Ba3 Ba2 Ba1 Ba0
    1f1b    Fa0 Fa1 Fb0 Fb1 Fa2 ── Bb0 Fa3 Bb1 Fb2 Ba0 Fb3 Ba1 Bb2 Bb3 Ba2 Ba3

These are the orders of torch.distributed.pipelining, which carries them out: ScheduleGPipe,
Schedule1F1B, ScheduleLoopedBFS and ScheduleInterleaved1F1B.

Sources: Y. Huang et al., "GPipe", NeurIPS 2019, section 2.3; D. Narayanan et al., "PipeDream", SOSP
2019, section 3.2; J. Lamy-Poirier, "Breadth-first pipeline parallelism", MLSys 2023, section 3; D.
Narayanan et al., "Efficient large-scale language model training on GPU clusters using Megatron-LM",
SC 2021, section 2.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from convoy.cost.layers import NetworkFacts
from convoy.cost.schedule import Phase

Kind = Literal["gpipe", "1f1b"]
KINDS: tuple[Kind, ...] = ("1f1b", "gpipe")

Pass = tuple[Phase, int, int]
"""Which way, through which stage of the pipeline, which micro-batch."""


def micro_batch_sizes(network: NetworkFacts, samples: int, micro_batches: int) -> tuple[int, ...]:
    """Samples of each micro-batch, as even as can be; fewer of them where samples do not suffice.

    A network that normalises batches gets two samples at least in each, if there are two.
    """
    number = min(micro_batches, most_micro_batches(network, samples))
    each, more = divmod(samples, number)
    return (each + 1,) * more + (each,) * (number - more)


def most_micro_batches(network: NetworkFacts, samples: int) -> int:
    """Into how many micro-batches so many samples can be cut."""
    return max(1, samples // 2 if network.batch_norm_channels else samples)


def takes_turns(kind: Kind, depth: int, stages_each: int, number: int) -> bool:
    """Whether so many micro-batches are computed as `1f1b` has it; with others, as `gpipe`.

    One stage on each of `depth` devices needs as many micro-batches as there are devices. Several
    take them round by round, as many in each.
    """
    if stages_each == 1:
        return kind == "1f1b" and number >= depth
    return kind == "1f1b" and number % max(1, number // depth) == 0


def passes(kind: Kind, place: int, depth: int, stages_each: int, number: int) -> Iterator[Pass]:
    """What a device computes in a step, in order.

    Args:
        kind: the order that is asked for.
        place: of `depth`; with stages `place`, `place + depth` and so on. One device alone has
            nothing to wait for, and takes one micro-batch after another.
        number: of micro-batches.
    """
    stages = range(place, depth * stages_each, depth)
    if depth > 1 and not takes_turns(kind, depth, stages_each, number):
        yield from (("forward", stage, batch) for stage in stages for batch in range(number))
        order = range(number) if stages_each == 1 else range(number)[::-1]
        yield from (("backward", stage, batch) for stage in stages[::-1] for batch in order)
        return
    by_round = number // max(1, number // depth)
    ahead = depth - place
    if stages_each > 1:
        ahead = (stages_each - 1) * by_round + 2 * (depth - 1 - place) + 1
    forward = _in_rounds(stages, by_round, number)
    backward = _in_rounds(stages[::-1], by_round, number)
    total = number * stages_each
    for _ in range(min(ahead, total)):
        yield "forward", *next(forward)
    for done in range(total):
        yield "backward", *next(backward)
        if ahead + done < total:
            yield "forward", *next(forward)


def _in_rounds(stages: range, by_round: int, number: int) -> Iterator[tuple[int, int]]:
    """Some micro-batches through each stage, then the next through each."""
    for first in range(0, number, by_round):
        for stage in stages:
            for batch in range(first, min(first + by_round, number)):
                yield stage, batch
