"""What it costs to have images recognised: here, there, or half here and half there.

    edge ┃ infer, encode ┃
    link                 ┃ latency, bytes ┃
    cloud                                 ┃ decode, infer ┃ ─▶ answer

One batch at a time takes the sum of these; batches one after another, all three at work at once,
take as long as the slowest of them. Nothing here measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from convoy.errors import UnknownNameError, UsageError

LOCAL, PICTURE, SPLIT = "local", "picture", "split"
FRAMING = 1514 / 1448
"""Bytes on an Ethernet for each of a long TCP stream's."""
OVERHEAD_BYTES = 400
"""Of a request and its headers, beside what the codec made."""
OVERHEAD_S = 0.0007
"""Of a request, both ends together: measured on loopback with 8 kB."""


CLIENT_BATCH_S, CLIENT_IMAGE_S = 3.2e-4, 2.4e-5
"""Of the edge client itself: queues, threads, results (`benchmarks/split_client.py`)."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Something by batch size: measured at one or two, linear between them and beyond."""

    sizes: tuple[int, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        assert 0 < len(self.sizes) == len(self.values) <= 2, "one or two points"
        assert len(set(self.sizes)) == len(self.sizes), "of different sizes"

    def __call__(self, count: int) -> float:
        """At a batch of `count`; in proportion to it, where only one was measured."""
        if len(self.sizes) == 1:
            return self.values[0] * count / self.sizes[0]
        (a, b), (x, y) = self.sizes, self.values
        return max(0.0, x + (y - x) * (count - a) / (b - a))

    def plus(self, once: float, each: float) -> Curve:
        """With so much more whatever the size, and for each."""
        pairs = zip(self.sizes, self.values, strict=True)
        return replace(self, values=tuple(value + once + each * size for size, value in pairs))

    def times(self, factor: float) -> Curve:
        """The same in another unit, or on a machine of another speed."""
        return replace(self, values=tuple(value * factor for value in self.values))


NOTHING = Curve(sizes=(1,), values=(0.0,))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way of having images recognised."""

    name: str
    kind: str
    """local, picture or split."""
    variant: str = ""
    """Which network, as a manifest calls it."""
    cut: str | None = None
    codec: str | None = None
    edge_s: Curve = NOTHING
    """Seconds of the edge for a batch, encoding included."""
    sent_bytes: Curve = NOTHING
    cloud_s: Curve = NOTHING
    """Seconds of the cloud for a batch, decoding included."""
    answer_bytes: Curve = NOTHING
    accuracy: float | None = None
    depth: float = 0.0
    """How much of the network's work is before the cut, from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """What joins edge and cloud."""

    bandwidth_bit_s: float
    """Each way."""
    latency_s: float
    """One way."""
    overhead_s: float = OVERHEAD_S
    """Of a request, whatever it carries, on both machines together."""
    overhead_on_edge: float = 0.5
    """How much of that is the edge's."""
    overhead_bytes: float = OVERHEAD_BYTES

    def __post_init__(self) -> None:
        if not self.bandwidth_bit_s > 0:
            raise UsageError(
                f"an uplink of {self.bandwidth_bit_s:g} bit/s carries nothing: expected a "
                "bandwidth above 0, as 10 Mbit/s. Without a link everything is computed on the edge"
            )
        if not self.latency_s >= 0:
            raise UsageError(f"a latency of {self.latency_s:g} s: expected 0 or more")

    def wire_s(self, size: float) -> float:
        """How long a request of `size` bytes occupies one direction."""
        return (size + self.overhead_bytes) * FRAMING * 8 / self.bandwidth_bit_s


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a batch takes."""

    edge_s: float
    sent_bytes: float
    transfer_s: float
    """There and back, with what a request takes whatever it carries."""
    cloud_s: float
    latency_s: float
    """From the images to the answer, with nothing else going on."""
    images_per_s: float
    """One batch after another, all parts at work at once."""
    synchronous_images_per_s: float
    """The next batch begins when the answer to the last one is there."""
    bottleneck: str
    """edge, link or cloud."""


def cost(candidate: Candidate, link: Link, count: int) -> Cost:
    """What a batch of `count` images takes."""
    edge_s = candidate.edge_s(count)
    if candidate.kind == LOCAL:
        stages = {"edge": edge_s}
        sent = transfer_s = cloud_s = 0.0
    else:
        sent, cloud_s = candidate.sent_bytes(count), candidate.cloud_s(count)
        there, back = link.wire_s(sent), link.wire_s(candidate.answer_bytes(count))
        transfer_s = there + back + 2 * link.latency_s + link.overhead_s
        on_edge = link.overhead_s * link.overhead_on_edge
        stages = {
            "edge": edge_s + on_edge,
            "link": max(there, back),
            "cloud": cloud_s + link.overhead_s - on_edge,
        }
    latency_s = edge_s + transfer_s + cloud_s
    bottleneck = max(stages, key=lambda stage: stages[stage])
    return Cost(
        edge_s=edge_s,
        sent_bytes=sent,
        transfer_s=transfer_s,
        cloud_s=cloud_s,
        latency_s=latency_s,
        images_per_s=count / stages[bottleneck],
        synchronous_images_per_s=count / latency_s,
        bottleneck=bottleneck,
    )


def latency_s(candidate: Candidate, link: Link, count: int) -> float:
    """Seconds from a batch of images to its answer, with nothing else going on."""
    return cost(candidate, link, count).latency_s


def throughput(candidate: Candidate, link: Link, count: int, *, synchronous: bool = False) -> float:
    """Images per second, in batches of `count`, pipelined or one batch after the other."""
    found = cost(candidate, link, count)
    return found.synchronous_images_per_s if synchronous else found.images_per_s


def _by_privacy(candidate: Candidate, link: Link, count: int) -> tuple[float, ...]:
    """Nothing sent before features, features before pictures; deeper, then fewer bytes first.

    This is an order, not a measure: `convoy split privacy` measures what can be recovered.
    """
    rank = {LOCAL: 0, SPLIT: 1, PICTURE: 2}[candidate.kind]
    found = cost(candidate, link, count)
    return (rank, -candidate.depth, found.sent_bytes, found.latency_s)


def _by_bytes(candidate: Candidate, link: Link, count: int) -> tuple[float, ...]:
    found = cost(candidate, link, count)
    return (found.sent_bytes, found.latency_s)


Key = Callable[[Candidate, Link, int], tuple[float, ...]]
OBJECTIVES: dict[str, Key] = {
    "latency": lambda candidate, link, count: (latency_s(candidate, link, count),),
    "throughput": lambda candidate, link, count: (
        -throughput(candidate, link, count),
        latency_s(candidate, link, count),
    ),
    "bytes": _by_bytes,
    "privacy": _by_privacy,
}
"""What is to be least."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked of a choice."""

    objective: str = "latency"
    count: int = 1
    """Images in a batch."""
    accuracy: float | None = None
    """Of the full network, which the choice is to come near; None: nobody has measured it."""
    accuracy_within: float = 1.0
    """How many points below that it may be."""

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise UnknownNameError("objective", self.objective, OBJECTIVES)

    def refusal(self, candidate: Candidate) -> str | None:
        """Why a candidate will not do; None if it will, or if nobody knows."""
        if self.accuracy is None or candidate.accuracy is None:
            return None
        lost = (self.accuracy - candidate.accuracy) * 100
        if lost <= self.accuracy_within + 1e-9:
            return None
        return f"{lost:.1f} points less accurate than the full network"


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Candidates by how well they do."""

    best: tuple[Candidate, ...]
    """Those that will do, best first."""
    refused: tuple[tuple[Candidate, str], ...] = field(default=())
    """The others, with the reason, in the same order."""


def rank(candidates: Iterable[Candidate], link: Link, wish: Wish) -> Ranking:
    """Candidates by the objective, those that are too inaccurate apart."""
    key = OBJECTIVES[wish.objective]
    ordered = sorted(candidates, key=lambda candidate: key(candidate, link, wish.count))
    judged = [(candidate, wish.refusal(candidate)) for candidate in ordered]
    return Ranking(
        best=tuple(candidate for candidate, reason in judged if reason is None),
        refused=tuple((candidate, reason) for candidate, reason in judged if reason is not None),
    )


def choose(candidates: Sequence[Candidate], link: Link, wish: Wish) -> Candidate:
    """The best of those that are accurate enough.

    Raises:
        UsageError: none is.
    """
    found = rank(candidates, link, wish)
    if not found.best:
        nearest = max(candidates, key=lambda c: c.accuracy or 0.0, default=None)
        said = f"; the nearest is {nearest.name}" if nearest else ""
        raise UsageError(
            f"nothing is within {wish.accuracy_within:g} points of the full network{said}. Allow "
            "more with --accuracy-within"
        )
    return found.best[0]


def choices(
    candidates: Sequence[Candidate], link: Link, wish: Wish, bandwidths: Iterable[float]
) -> list[tuple[float, Candidate]]:
    """The choice at each bandwidth, in bit/s."""
    return [
        (bandwidth, choose(candidates, replace(link, bandwidth_bit_s=bandwidth), wish))
        for bandwidth in bandwidths
    ]
