"""What `convoy split plan` says: ways by what is wanted of them, and where the choice changes.

Pure: it is given what was measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from convoy.cluster import Cluster, format_bandwidth, parse_bandwidth, parse_duration
from convoy.errors import ClusterError, UsageError
from convoy.split.costs import (
    CLIENT_BATCH_S,
    CLIENT_IMAGE_S,
    DEADLINE_S,
    LOCAL,
    OF_DEADLINE,
    PICTURE,
    Candidate,
    Cost,
    Link,
    Ranking,
    Wish,
    choices,
    cost,
    format_rate,
    rank,
)

PERIOD_S, REFILLED_S = 0.01, 0.0005
"""Of a quota as `convoy lab` sets it, and what a new turn takes to fill caches (`rest_s`)."""
BANDWIDTHS = tuple(10 ** (6 + step / 20) for step in range(61))
"""From 1 Mbit/s to 1 Gbit/s, twenty to a factor of ten."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a half is computed."""

    name: str
    cores: float
    speed: float = 1.0
    """Of one of its cores, relative to this machine's."""

    @property
    def factor(self) -> float:
        """By which times of one thread on this machine are to be multiplied.

        A part of a core is a quota: so much of each period, of which the beginning goes into
        filling caches again.
        """
        if self.cores >= 1:
            return 1 / self.speed
        worked_s = self.cores * PERIOD_S
        return PERIOD_S / max(worked_s - REFILLED_S, worked_s / 2) / self.speed


def place(text: str, option: str, cluster: Cluster | None) -> Place:
    """The machine of that name, or, without a cluster, one with so many cores.

    More than one core counts as one: what was measured is a single thread. A machine that is
    `like` another is as fast as its `speed` says.

    Raises:
        UsageError: there is none; says what was expected.
    """
    if cluster is not None:
        machine = cluster.machine(text)
        return Place(name=text, cores=machine.cpus, speed=cluster.reference(text)[1])
    try:
        cores = float(text)
    except ValueError:
        cores = 0.0
    if not 0 < cores < math.inf:
        raise UsageError(
            f"{option} {text}: expected cores above 0, as 0.25 or 1; or, with --cluster FILE, a "
            "machine of that file"
        )
    return Place(name=f"{cores:g} core{'s' * (cores != 1)}", cores=cores)


def link_between(
    edge: str, cloud: str, cluster: Cluster | None, bandwidth: str | None, latency: str | None
) -> Link:
    """What joins the two: the cluster file's link, or one of these figures, which win.

    Raises:
        UsageError: nothing says how fast it is, or it carries nothing.
    """
    if cluster is None and bandwidth is None:
        raise UsageError(
            "say what joins edge and cloud: --cluster FILE, or --bandwidth '10 Mbit/s' and "
            "--latency '5 ms'"
        )
    found = cluster.link(edge, cloud) if cluster else None
    try:
        bandwidth_bit_s = found.bandwidth_bit_s if found else 0.0
        if bandwidth is not None:
            bandwidth_bit_s = parse_bandwidth(bandwidth)
    except ClusterError as error:
        raise UsageError(
            f"--bandwidth: {error}. Over a link that carries nothing everything is computed on the "
            "edge"
        ) from None
    try:
        latency_s = found.latency_s if found else 1e-4
        if latency is not None:
            latency_s = parse_duration(latency)
    except ClusterError as error:
        raise UsageError(f"--latency: {error}") from None
    return Link(bandwidth_bit_s=bandwidth_bit_s, latency_s=latency_s)


def at_places(candidate: Candidate, edge: Place, cloud: Place) -> Candidate:
    """What was measured with one thread here, as it would be there, with what the client takes."""
    client = candidate.edge_s.plus(CLIENT_BATCH_S, CLIENT_IMAGE_S)
    return replace(
        candidate,
        edge_s=client.times(edge.factor),
        cloud_s=candidate.cloud_s.times(cloud.factor),
        edge_rest_s=candidate.edge_rest_s * edge.factor,
        cloud_rest_s=candidate.cloud_rest_s * cloud.factor,
    )


def between_places(link: Link, edge: Place, cloud: Place) -> Link:
    """A link whose requests take machines like this one so long, as it is between those."""
    here, there = link.edge_request_s, link.cloud_request_s
    on_edge, on_cloud = here * edge.factor, there * cloud.factor
    return replace(
        link,
        overhead_s=link.overhead_s * (on_edge + on_cloud) / (here + there),
        edge_request_s=on_edge,
        cloud_request_s=on_cloud,
    )


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """Every way there is, for two machines, a link and a wish."""

    network: str
    dataset: str | None
    edge: Place
    cloud: Place
    link: Link
    wish: Wish
    candidates: tuple[Candidate, ...]
    judged_images: int | None
    """How many test images accuracies were measured on; None: they were not."""

    @property
    def ranking(self) -> Ranking:
        """Best first, those that are too inaccurate apart."""
        return rank(self.candidates, self.link, self.wish)

    def cost(self, candidate: Candidate) -> Cost:
        """Of a batch."""
        return cost(candidate, self.link, self.wish.count)

    def row(self, candidate: Candidate, reason: str | None) -> dict[str, Any]:
        """As `convoy split plan --json` prints it."""
        about = ("name", "kind", "variant", "cut", "codec", "accuracy", "depth")
        single = cost(candidate, self.link, 1)
        return (
            {name: getattr(candidate, name) for name in about}
            | asdict(self.cost(candidate))
            | {"single_latency_s": single.latency_s, "refused": reason}
        )

    def rows(self) -> list[dict[str, Any]]:
        """All ways, best first, then those that will not do."""
        found = self.ranking
        return [self.row(candidate, None) for candidate in found.best] + [
            self.row(candidate, reason) for candidate, reason in found.refused
        ]

    def over_bandwidth(self) -> list[dict[str, Any]]:
        """What would be chosen from 1 Mbit/s to 1 Gbit/s, where anything will do."""
        rows = []
        for bandwidth, chosen in choices(self.candidates, self.link, self.wish, BANDWIDTHS):
            link = replace(self.link, bandwidth_bit_s=bandwidth)
            figures = asdict(cost(chosen, link, self.wish.count))
            rows.append({"bandwidth_bit_s": bandwidth, "name": chosen.name} | figures)
        return rows

    def to_dict(self) -> dict[str, Any]:
        """As `convoy split plan --json` prints it."""
        return {
            "network": self.network,
            "dataset": self.dataset,
            "edge": asdict(self.edge),
            "cloud": asdict(self.cloud),
            "link": asdict(self.link),
            "batch_size": self.wish.count,
            "objective": self.wish.objective,
            "accuracy": self.wish.accuracy,
            "accuracy_within": self.wish.accuracy_within,
            "rate": self.wish.images_per_s,
            "deadline_s": None if self.wish.deadline_s == math.inf else self.wish.deadline_s,
            "judged_images": self.judged_images,
            "rows": self.rows(),
            "chosen": 0 if self.ranking.best else None,
            "verdict": self.verdict(),
            "over_bandwidth": self.over_bandwidth(),
        }

    def verdict(self) -> str:
        """The choice in words, beside what else one would think of."""
        ranking = self.ranking
        best = ranking.best
        if not best:
            said = ranking.nothing()
            return f"{said[0].upper()}{said[1:]}."
        chosen = best[0]
        found = self.cost(chosen)
        doing = {
            LOCAL: "Compute all on the edge.",
            PICTURE: f"Compute all in the cloud: {chosen.name}.",
        }.get(chosen.kind, f"Cut: {chosen.name}.")
        figures = f"{format_rate(found.images_per_s)} images/s one batch after another"
        if self.wish.count > 1:
            figures += f", {found.latency_s * 1e3:,.1f} ms for a batch of {self.wish.count}"
        else:
            figures += f", {found.latency_s * 1e3:,.1f} ms for one image"
        figures += f"; the {found.bottleneck} is the bottleneck."
        parts = [
            doing,
            figures,
            *self._beside(chosen, best),
            *self._waits(chosen),
            *self._changes(),
        ]
        return " ".join(parts)

    def _waits(self, chosen: Candidate) -> list[str]:
        """What the edge client has to be told where answers take longer than it waits."""
        needed_s = self.cost(chosen).latency_s / OF_DEADLINE
        if chosen.kind == LOCAL or needed_s <= DEADLINE_S or self.wish.deadline_s < math.inf:
            return []
        return [f"`convoy split run` needs --deadline {_rounded_up(needed_s):g} for that."]

    def _beside(self, chosen: Candidate, best: Sequence[Candidate]) -> list[str]:
        """The choice in proportion to the plainest other ways."""
        others = {
            "all on the edge": [c for c in best if c.kind == LOCAL],
            "the best picture": [c for c in best if c.kind == PICTURE],
            "the best cut": [c for c in best if c.cut is not None],
        }
        said = []
        for what, candidates in others.items():
            if candidates and candidates[0].kind != chosen.kind:
                other = candidates[0]
                is_plain = other.kind == LOCAL and not other.variant
                named = what if is_plain else f"{what} ({other.name})"
                said.append(f"{named} {self._against(other)}")
        return [f"Beside it: {'; '.join(said)}."] if said else []

    def _against(self, other: Candidate) -> str:
        found = self.cost(other)
        if self.wish.objective == "throughput":
            return f"gives {format_rate(found.images_per_s)} images/s"
        if self.wish.objective == "latency":
            return f"takes {found.latency_s * 1e3:,.1f} ms"
        return f"sends {found.sent_bytes / self.wish.count:,.0f} bytes an image"

    def _changes(self) -> list[str]:
        """Where the choice changes with the link."""
        rows = self.over_bandwidth()
        changes = [
            (after["bandwidth_bit_s"], after["name"])
            for before, after in itertools.pairwise(rows)
            if before["name"] != after["name"]
        ]
        if not rows:
            return ["From 1 Mbit/s to 1 Gbit/s nothing will do."]
        least = rows[0]["bandwidth_bit_s"]
        below = f" Below {_about(least)} nothing will do." if least > BANDWIDTHS[0] else ""
        if not changes:
            return [f"From {_about(least)} to 1 Gbit/s that is so.{below}"]
        parts = [f"up to {_about(changes[0][0])} {rows[0]['name']}"]
        parts += [f"from there {name}" if n == 0 else f"from {_about(at)} {name}"
                  for n, (at, name) in enumerate(changes)]  # fmt: skip
        return [f"Over other links: {', '.join(parts)}.{below}"]


def _rounded_up(seconds: float) -> float:
    return math.ceil(seconds * 10) / 10


def _about(bandwidth_bit_s: float) -> str:
    digits = 1 - math.floor(math.log10(bandwidth_bit_s))
    return format_bandwidth(round(bandwidth_bit_s, digits))
