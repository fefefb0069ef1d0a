"""Profiles at hand: taken from a file or the cache if they fit, measured and kept otherwise."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pooch

from convoy.cluster import Cluster, format_bandwidth
from convoy.cost.profile import DeviceProfile, Profile, load
from convoy.cost.profile_fit import checked, misfits
from convoy.errors import ProfileError
from convoy.runtime.formation import Job
from convoy.runtime.observer import Observer
from convoy.runtime.placement import Place, cluster_of, threads_at
from convoy.runtime.pool import Pool
from convoy.runtime.settings import TrainSettings
from convoy.runtime.survey import describe, identity, survey

ALIKE = 1.3
"""By which factor a link may be faster or slower than described without a word."""


def fitting(
    job: Job, places: Sequence[Place], observer: Observer, pool: Pool, *, given: Path | None = None
) -> Profile:
    """A profile of the job's network on these places.

    Args:
        given: the file to take it from, come what may; else the cache is looked at, and what it
            does not have is measured.

    Raises:
        ProfileError: the given one does not fit; says why.
    """
    about = describe(places, pool)
    wanted = wanted_profile(job, places, about)
    if given is not None:
        return checked(load(given), wanted, str(given))
    kept = cache_path(wanted, links_of(job.settings))
    if kept.is_file():
        try:
            profile = load(kept)
            reasons = misfits(profile, wanted)
        except ProfileError as error:
            reasons = [str(error)]
        if not reasons:
            observer.say(f"planning with the profile of {profile.created} in {kept}")
            return profile
        observer.say(f"{kept} no longer fits: {'; '.join(reasons)}")
    return _measured(job, places, observer, pool, kept)


def measured(job: Job, places: Sequence[Place], observer: Observer, pool: Pool) -> Profile:
    """A new profile, which `fitting` finds from now on."""
    wanted = wanted_profile(job, places, describe(places, pool))
    kept = cache_path(wanted, links_of(job.settings))
    return _measured(job, places, observer, pool, kept)


def _measured(
    job: Job, places: Sequence[Place], observer: Observer, pool: Pool, kept: Path
) -> Profile:
    profile = survey(job, places, observer, pool)
    profile.save(kept)
    return profile


def wanted_profile(job: Job, places: Sequence[Place], about: Sequence[dict[str, Any]]) -> Profile:
    """What a profile for this job has to be of."""
    return replace(
        identity(job),
        devices=tuple(
            DeviceProfile(
                machine=place.machine,
                device=place.device,
                hardware=facts["hardware"],
                cores=place.cores,
                threads=threads_at(place, places, job.settings),
                memory_bytes=facts["memory_bytes"],
                samples=(1,),
                load_s=(0.0,),
                forward_s=(0.0,),
                backward_s=(0.0,),
                update_s=0.0,
            )
            for place, facts in zip(places, about, strict=True)
        ),
    )


def check_cores(profile: Profile, cluster: Cluster) -> None:
    """Raise ProfileError if a machine of `cluster` has other cores than it was measured with."""
    for machine in cluster.real_machines:
        for device in profile.devices:
            if device.machine == machine.name and device.cores != machine.cpus:
                raise ProfileError(
                    f"{machine.name} was measured with {device.cores:g} cores, and the cluster "
                    f"file gives it {machine.cpus:g}. Measure again: convoy measure"
                )


def contradictions(profile: Profile, cluster: Cluster) -> list[str]:
    """Where links were measured as something else than what the cluster file says of them."""
    found = []
    for measured in profile.links:
        a, b = measured.between
        if a == b or not {a, b} <= {machine.name for machine in cluster.real_machines}:
            continue
        told, bits_s = cluster.link(a, b).bandwidth_bit_s, 8 * measured.bandwidth_bytes_s
        if not 1 / ALIKE < bits_s / told < ALIKE:
            found.append(
                f"{a} - {b}: measured {format_bandwidth(round(bits_s, -3))}, the cluster file says "
                f"{format_bandwidth(told)}; planning with what was measured. To plan for another "
                "link, give --bandwidth"
            )
    return found


def links_of(settings: TrainSettings) -> str:
    """What the cluster file says of links: with others, what was measured is of no use."""
    cluster = cluster_of(settings)
    if cluster is None:
        return settings.cluster or ""
    names = [machine.name for machine in cluster.real_machines]
    return repr([cluster.link(a, b) for a, b in itertools.combinations(names, 2)])


def cache_path(wanted: Profile, links: str = "") -> Path:
    """Where the profile for these machines, links and network is kept."""
    what = [wanted.network, wanted.precision, wanted.optimizer, wanted.memory_format]
    what += [wanted.loading, wanted.conv_algorithm]
    where = [(d.machine, d.device, d.cores, d.threads) for d in wanted.devices]
    digest = hashlib.sha256(repr((what, where, links)).encode()).hexdigest()[:12]
    name = re.sub(r"[^a-zA-Z0-9.-]+", "-", wanted.network.name).strip("-")[:40]
    return Path(pooch.os_cache("convoy")) / "profiles" / f"{name}-{digest}.json"


def positions(profile: Profile, places: Sequence[Place]) -> list[int]:
    """Where in the profile each place's device is."""
    left = list(enumerate(profile.devices))
    found = []
    for place in places:
        here = next(
            (i, d) for i, d in left if (d.machine, d.device) == (place.machine, place.device)
        )
        left.remove(here)
        found.append(here[0])
    return found
