"""Measures machines, links and a network: what `convoy measure` does.

    all devices at once     steps at several batch sizes          10 s
    all at once             layers, parts of convolutions          3 s
    all, then each alone    steps of one size, three times         2 s, and 2 s each
    pairs, then all         links, all-reduces                     1 s a pair, and 3 s

Devices work at the same time since in a run they do: ranks of one machine share its memory's
bandwidth, and machines of a lab share a computer. How much faster each is alone is measured
besides, for plans that use one machine.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy
import torch

from convoy.cost.layers import fingerprint, layers_of
from convoy.cost.profile import (
    AllReduceProfile,
    DeviceProfile,
    LayerProfile,
    LinkProfile,
    Profile,
    ProfiledNetwork,
)
from convoy.cost.world import with_way
from convoy.datasets import DataSet
from convoy.datasets.memory import MemoryImages
from convoy.runtime.formation import Job
from convoy.runtime.ingredients import build_network, open_data
from convoy.runtime.member_handle import START_TIMEOUT_S
from convoy.runtime.observer import Observer
from convoy.runtime.party import Party
from convoy.runtime.placement import Place, threads_at
from convoy.runtime.pool import Pool
from convoy.runtime.settings import TrainSettings
from convoy.runtime.step_statistics import cuts_of
from convoy.runtime.surveyor import Orders, Steps
from convoy.version import __version__

STEPS_S, ALONE_S, STATE_S, LAYERS_S, FILTERS_S = 10.0, 0.6, 0.5, 1.5, 1.5
ALONE_ROUNDS = 3
LONGEST_ALONE_S = 2.0
"""Of a step that is timed alone."""
ALL_REDUCE_BYTES = (8, 1 << 14, 1 << 18, 1 << 20, 1 << 22, 1 << 24)
ALL_REDUCE_S = 1.0
"""How long each size goes on, about."""


def identity(job: Job) -> Profile:
    """A profile without times: what one has to be of to stand for `job`."""
    data = open_data(job)
    settings = job.settings
    model = build_network(job.network, data, settings.seed)
    shape = data.train.image_shape
    return Profile(
        network=ProfiledNetwork(
            name=settings.network,
            input=tuple(shape),
            classes=data.train.num_classes,
            fingerprint=fingerprint(layers_of(model, shape)),
        ),
        precision=settings.precision,
        optimizer=settings.optimizer,
        memory_format=settings.memory_format,
        conv_algorithm=settings.conv_algorithm,
        batch_size=settings.batch_size,
        loading=_loading(data, settings),
        versions={"convoy": __version__, "torch": torch.__version__.partition("+")[0]},
        devices=(),
    )


def _loading(data: DataSet, settings: TrainSettings) -> str:
    """Images that lie in memory are all alike; what reads files is like nothing else."""
    source = "from memory" if isinstance(data.train, MemoryImages) else settings.data
    return source if settings.augment == "none" else f"{source}, {settings.augment}"


def describe(places: Sequence[Place], pool: Pool) -> list[dict[str, Any]]:
    """Each place's hardware and memory."""
    party = Party(None, places, [1] * len(places), pool)
    try:
        found = party.ask("describe", [()] * len(places), START_TIMEOUT_S)
        party.dismiss()
    except BaseException:
        party.end()
        raise
    return found


def survey(job: Job, places: Sequence[Place], observer: Observer, pool: Pool) -> Profile:
    """Measure `places` with the job's network, by processes out of `pool`.

    Raises:
        CrewError: a device cannot be measured, or its machine died meanwhile.
    """
    threads = [threads_at(place, places, job.settings) for place in places]
    party = Party(job, places, threads, pool)
    try:
        observer.say(f"measuring {', '.join(f'{p.machine} ({p.device})' for p in places)}")
        about = party.ask("prepare", [(party.job,)] * len(places), START_TIMEOUT_S)
        layout, layouts = _choose_layout(job, party)
        chosen = party.ask("convolutions", [(layout,)] * len(places))
        sizes = ladder(job.settings.batch_size)
        orders = Orders(layout=layout, samples=sizes, seconds=STEPS_S)
        found: list[Steps] = party.ask("steps", [(orders,)] * len(places))
        on_state = party.ask("state", [(STATE_S,)] * len(places))
        layers = party.ask("layers", [(layer_sizes(s.samples), LAYERS_S) for s in found])
        filters = party.ask("filters", [(steps.samples[-1], FILTERS_S) for steps in found])
        alone = [1.0]
        if len(places) > 1:
            observer.say("measuring each machine while the others rest")
            alone = _measure_alone(party, found, job.settings.batch_size)
            observer.say("measuring the links between them")
        devices = [
            _device_profile(place, party.threads[i], about[i], found[i], layers[i], filters[i])
            for i, place in enumerate(places)
        ]
        links, all_reduce = _measure_links(party, places, job.settings.timeout_s)
        party.dismiss()
    except BaseException:
        party.end()
        raise
    wanted = identity(job)
    profile = Profile(
        network=wanted.network,
        precision=wanted.precision,
        optimizer=wanted.optimizer,
        memory_format=layout,
        conv_algorithm=wanted.conv_algorithm,
        batch_size=wanted.batch_size,
        loading=wanted.loading,
        versions=wanted.versions,
        devices=tuple(
            replace(
                device,
                **on_state[i],
                alone=alone[i],
                memory_formats=layouts[i],
                convolutions=chosen[i],
            )
            for i, device in enumerate(devices)
        ),
        links=tuple(links),
        all_reduce=all_reduce,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return with_way(profile)


def ladder(batch_size: int) -> tuple[int, ...]:
    """Batch sizes to measure: powers of four, and from a quarter on the quarters of the whole.

    Few enough that each is timed often; where shares mostly are, they lie closest.
    """
    quarters = {-(-batch_size * part // 4) for part in (1, 2, 3, 4)}
    small = {4**i for i in range(batch_size.bit_length()) if 4**i < batch_size / 4}
    return tuple(sorted(small | quarters))


def _choose_layout(job: Job, party: Party) -> tuple[str, list[dict[str, float]]]:
    """The layout that is faster where it matters most: on the device that takes longest."""
    asked = job.settings.memory_format
    count = len(party.places)
    samples = max(2, math.ceil(job.settings.batch_size / count / 2))
    found: list[dict[str, float]] = party.ask("layouts", [(samples,)] * count)
    if asked != "auto":
        return asked, found
    slowest = {layout: max(times[layout] for times in found) for layout in found[0]}
    return min(slowest, key=slowest.__getitem__), found


def _measure_alone(party: Party, found: Sequence[Steps], batch_size: int) -> list[float]:
    """Each device's time alone, relative to that while all work; in turns, as machines drift."""
    orders = [(alone_size(steps, batch_size / len(found)), ALONE_S) for steps in found]
    ratios: list[list[float]] = [[] for _ in found]
    for _ in range(ALONE_ROUNDS):
        together = party.ask("alone", orders)
        for rank, order in enumerate(orders):
            (alone,) = party.ask("alone", [order], ranks=[rank])
            ratios[rank].append(alone / together[rank])
    return [min(1.0, statistics.median(of_rank)) for of_rank in ratios]


def alone_size(steps: Steps, share: float) -> int:
    """Samples to time a device alone with: as near to its share as does not take too long.

    With few samples a step is mostly updates, which suffer more from neighbours than passes do.
    """
    seconds = [sum(phases) for phases in zip(*steps.seconds.values(), strict=True)]
    timed = zip(steps.samples, seconds, strict=True)
    return max(
        (size for size, s in timed if s < LONGEST_ALONE_S and size <= share),
        default=steps.samples[0],
    )


def _device_profile(
    place: Place,
    threads: int,
    about: dict[str, Any],
    steps: Steps,
    layers: dict[str, Any],
    filters: dict[str, dict[str, float]],
) -> DeviceProfile:
    return DeviceProfile(
        machine=place.machine,
        device=place.device,
        hardware=about["hardware"],
        cores=place.cores,
        threads=threads,
        memory_bytes=about["memory_bytes"],
        samples=steps.samples,
        load_s=steps.seconds["load"],
        forward_s=steps.seconds["forward"],
        backward_s=steps.seconds["backward"],
        update_s=statistics.median(steps.seconds["update"]),
        replica_s=steps.replica_s,
        variation=steps.variation,
        layers=tuple(
            LayerProfile(
                name=name,
                **_spread(steps, forward, backward, layers),
                filters=filters.get(name, {}),
            )
            for name, (forward, backward) in layers.items()
        ),
    )


def layer_sizes(samples: Sequence[int]) -> tuple[int, ...]:
    """The batch sizes at which layers are timed: the smallest, and the largest three."""
    return tuple(dict.fromkeys((samples[0], *samples[-3:])))


def _spread(
    steps: Steps,
    forward: tuple[float, ...],
    backward: tuple[float, ...],
    layers: dict[str, Any],
) -> dict[str, tuple[float, ...]]:
    """One layer's part of the whole network's times, at all of its batch sizes.

    At sizes between those at which layers were timed, parts lie between theirs.
    """
    timed = [steps.samples.index(size) for size in layer_sizes(steps.samples)]
    parts: dict[str, tuple[float, ...]] = {}
    for phase, own, place in (("forward", forward, 0), ("backward", backward, 1)):
        sums = [sum(times[place][i] for times in layers.values()) or 1.0 for i in range(len(own))]
        shares = [seconds / whole for seconds, whole in zip(own, sums, strict=True)]
        every = numpy.interp(range(len(steps.samples)), timed, shares)
        whole = steps.seconds[phase]
        parts[f"{phase}_s"] = tuple(float(s * w) for s, w in zip(every, whole, strict=True))
    return parts


def _measure_links(
    party: Party, places: Sequence[Place], timeout_s: float
) -> tuple[list[LinkProfile], AllReduceProfile | None]:
    count = len(places)
    if count == 1:
        return [], None
    (port,) = party.ask("open_store", [()], ranks=[0])
    address = places[0].address
    party.ask("meet", [(r, count, address, port, timeout_s) for r in range(count)], START_TIMEOUT_S)
    between: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for a, b in itertools.combinations(range(count), 2):
        pair = (places[a].machine, places[b].machine)
        known = next((p for p in between if set(p) == set(pair)), pair)
        if len(between.get(known, ())) >= 2:  # ranks of the same two machines: measured
            continue
        for source, destination in ((a, b), (b, a)):
            rows = party.ask("link", [(source, destination)] * 2, ranks=[a, b])
            between.setdefault(known, []).append(rows[0])
    links = [
        LinkProfile(
            between=pair,
            bandwidth_bytes_s=statistics.median(row["bandwidth_bytes_s"] for row in rows),
            latency_s=statistics.median(row["latency_s"] for row in rows),
            variation=cuts_of([ratio for row in rows for ratio in row["relative"]]),
        )
        for pair, rows in between.items()
    ]
    slowest = min(link.bandwidth_bytes_s for link in links)
    sizes = [s for s in ALL_REDUCE_BYTES if s / slowest < ALL_REDUCE_S]
    repeats = [max(3, min(100, int(ALL_REDUCE_S / (0.005 + 2 * s / slowest)))) for s in sizes]
    rows = party.ask("all_reduces", [(sizes, repeats)] * count)
    party.ask("part", [()] * count)
    seconds = []
    ratios: list[float] = []
    for i in range(len(sizes)):
        # All ranks are in it together: the middle one of their times. In a row, these alone
        # use a small CPU quota up; what they cost the CPU is counted apart, so no mean here.
        times = [statistics.median(t) for t in zip(*(r[i]["seconds"] for r in rows), strict=True)]
        seconds.append(statistics.median(times))
        ratios += [t / seconds[-1] for t in times]
    return links, AllReduceProfile(
        payload_bytes=tuple(sizes),
        seconds=tuple(seconds),
        cpu_s=tuple(tuple(row[i]["cpu_s"] for i in range(len(sizes))) for row in rows),
        variation=cuts_of(ratios),
    )
