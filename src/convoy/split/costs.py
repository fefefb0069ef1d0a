"""What it costs to have images recognised: here, there, or half here and half there.

    edge ┃ infer, encode ┃
    link                 ┃ latency, bytes ┃
    cloud                                 ┃ decode, infer ┃ ─▶ answer

One batch at a time takes the sum of these; batches one after another, all three at work at once,
take as long as the slowest of them. Nothing here measures: the plan gives what was measured before,
the edge client what it measures as it goes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from convoy.errors import UnknownNameError, UsageError

LOCAL, PICTURE, SPLIT = "local", "picture", "split"
FRAMING = 1514 / 1448
"""Bytes on an Ethernet for each of a long TCP stream's."""
OVERHEAD_BYTES = 400
"""Of a request and its headers, beside what the codec made."""
OVERHEAD_S = 0.0025
"""How much longer an answer takes for the request itself (`benchmarks/split_client.py`)."""
EDGE_REQUEST_S, CLOUD_REQUEST_S = 0.0011, 0.00105
"""What either end takes for a request itself (likewise), with what networks lose beside it."""
DEADLINE_S = 0.4
"""How long the edge client waits for an answer, if it is not told otherwise."""
OF_DEADLINE = 0.8
"""What is foreseen to take more than this part of the deadline is too late."""
TIE = 1e-4
"""What latency counts where something else is to be little."""

LEAST_S = 1e-9
"""Nothing is thought to take less, whatever is not known of it."""
CLIENT_BATCH_S, CLIENT_IMAGE_S = 1.4e-4, 1.7e-5
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

    def with_(self, by: Callable[..., float], *others: Curve) -> Curve:
        """What a function makes of the values of several curves of the same sizes."""
        assert all(other.sizes == self.sizes for other in others), "measured at the same sizes"
        each = zip(self.values, *(other.values for other in others), strict=True)
        return replace(self, values=tuple(by(*values) for values in each))

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
    edge_rest_s: float = 0.0
    """What the edge takes more after it has waited for an answer: its caches hold other things."""
    cloud_rest_s: float = 0.0
    """Likewise the cloud, after it has waited for a request."""
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
    """How much longer an answer takes for the request itself, whatever that carries."""
    edge_request_s: float = EDGE_REQUEST_S
    """What the edge computes for it."""
    cloud_request_s: float = CLOUD_REQUEST_S
    overhead_bytes: float = OVERHEAD_BYTES
    framing: float = FRAMING
    """Bytes on the wire for each; 1 where the bandwidth is that of a request's own bytes."""

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
        return (size + self.overhead_bytes) * self.framing * 8 / self.bandwidth_bit_s


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a batch takes."""

    edge_s: float
    sent_bytes: float
    transfer_s: float
    """There and back, with what a request takes whatever it carries."""
    link_s: float
    """How long it keeps the link from others, in the direction that takes longer."""
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
        sent = transfer_s = link_s = cloud_s = rest_s = 0.0
    else:
        sent, cloud_s = candidate.sent_bytes(count), candidate.cloud_s(count)
        there, back = link.wire_s(sent), link.wire_s(candidate.answer_bytes(count))
        link_s = max(there, back)
        transfer_s = there + back + 2 * link.latency_s + link.overhead_s
        rest_s = candidate.edge_rest_s + candidate.cloud_rest_s
        stages = {
            "edge": edge_s + link.edge_request_s,
            "link": link_s,
            "cloud": _among_others(candidate.cloud_s, count) + link.cloud_request_s,
        }
    latency_s = edge_s + transfer_s + cloud_s + rest_s
    bottleneck = max(stages, key=lambda stage: stages[stage])
    return Cost(
        edge_s=edge_s,
        sent_bytes=sent,
        transfer_s=transfer_s,
        link_s=link_s,
        cloud_s=cloud_s,
        latency_s=latency_s,
        images_per_s=count / max(stages[bottleneck], LEAST_S),
        synchronous_images_per_s=count / max(latency_s, LEAST_S),
        bottleneck=bottleneck,
    )


def _among_others(cloud_s: Curve, count: int) -> float:
    """What a batch takes of a cloud that has more to do: it computes those that wait together."""
    together = max(cloud_s.sizes)
    return min(cloud_s(count), cloud_s(together) * count / together)


def format_rate(images_per_s: float) -> str:
    """Images per second as people read them."""
    return f"{images_per_s:,.0f}" if images_per_s >= 10 else f"{images_per_s:.2g}"


OBJECTIVES = ("latency", "throughput", "bytes", "privacy")


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
    images_per_s: float = 0.0
    """What the choice is to keep up with."""
    deadline_s: float = math.inf
    """How long an answer may take; nothing is too late that stays on the edge."""

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise UnknownNameError("objective", self.objective, OBJECTIVES)
        if not 0 <= self.images_per_s < math.inf:
            raise UsageError(f"{self.images_per_s:g} images/s: expected a rate to keep up with")
        if not self.deadline_s > 0:
            raise UsageError(f"a deadline of {self.deadline_s:g} s: expected more than 0")

    def measure(self, found: Cost) -> float:
        """What is to be least.

        Of `privacy`: of features the fewest bytes, since no more can be seen in them than they have
        room for, and no pictures (see `refusal`). An order: `convoy split privacy` measures.
        """
        match self.objective:
            case "latency":
                return found.latency_s
            case "throughput":
                return self.count / found.images_per_s + TIE * found.latency_s
        return found.sent_bytes / self.count + TIE * found.latency_s

    def refusal(self, candidate: Candidate, found: Cost) -> str | None:
        """Why a candidate will not do; None if it will, or if nobody knows."""
        if self.objective == "privacy" and candidate.kind == PICTURE:
            return "it would send the picture"
        if self.accuracy is not None and candidate.accuracy is not None:
            lost = (self.accuracy - candidate.accuracy) * 100
            if lost > self.accuracy_within + 1e-9:
                return f"{lost:.1f} points less accurate than the full network"
        if self.is_late(candidate, found):
            return f"{found.latency_s:.2g} s until the answer, of a deadline of {self.deadline_s:g}"
        if not self.keeps_up(found):
            wanted = format_rate(self.images_per_s)
            return f"{format_rate(found.images_per_s)} images/s, of {wanted}"
        return None

    def is_late(self, candidate: Candidate, found: Cost) -> bool:
        """Whether its answers would often come after the deadline."""
        return candidate.kind != LOCAL and found.latency_s > OF_DEADLINE * self.deadline_s

    def keeps_up(self, found: Cost) -> bool:
        """Whether it is as fast as images come."""
        return found.images_per_s >= self.images_per_s


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Candidates by how well they do."""

    best: tuple[Candidate, ...]
    """Those that will do, best first."""
    refused: tuple[tuple[Candidate, str], ...] = field(default=())
    """The others, with the reason, in the same order."""

    def nothing(self) -> str:
        """What is said where nothing will do."""
        each = "; ".join(f"{candidate.name}: {reason}" for candidate, reason in self.refused[:3])
        return (
            f"nothing will do ({each or 'there is nothing'}). Ask for less: --accuracy-within, "
            "--deadline or --rate"
        )


def rank(candidates: Iterable[Candidate], link: Link, wish: Wish) -> Ranking:
    """Candidates by the objective, those that will not do apart."""
    costed = [(candidate, cost(candidate, link, wish.count)) for candidate in candidates]
    costed.sort(key=lambda pair: wish.measure(pair[1]))
    judged = [(candidate, wish.refusal(candidate, found)) for candidate, found in costed]
    return Ranking(
        best=tuple(candidate for candidate, reason in judged if reason is None),
        refused=tuple((candidate, reason) for candidate, reason in judged if reason is not None),
    )


def choices(
    candidates: Sequence[Candidate], link: Link, wish: Wish, bandwidths: Iterable[float]
) -> list[tuple[float, Candidate]]:
    """The choice at each bandwidth, in bit/s, where there is one."""
    found = [
        (bandwidth, rank(candidates, replace(link, bandwidth_bit_s=bandwidth), wish).best[:1])
        for bandwidth in bandwidths
    ]
    return [(bandwidth, best[0]) for bandwidth, best in found if best]
