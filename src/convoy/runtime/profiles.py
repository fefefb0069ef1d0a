"""Profiles at hand: taken from a file or the cache if they fit, measured and kept otherwise."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pooch

from convoy.cost.profile import DeviceProfile, Profile, checked, load, misfits
from convoy.errors import ProfileError
from convoy.runtime.formation import Job
from convoy.runtime.observer import Observer
from convoy.runtime.placement import Place, threads_at
from convoy.runtime.pool import Pool
from convoy.runtime.survey import describe, identity, survey


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
        profile = checked(load(given), wanted, str(given))
        return _of_places(profile, places)
    kept = cache_path(wanted)
    if kept.is_file():
        try:
            profile = load(kept)
            reasons = misfits(profile, wanted)
        except ProfileError as error:
            reasons = [str(error)]
        if not reasons:
            observer.say(f"planning with the profile of {profile.created} in {kept}")
            return _of_places(profile, places)
        observer.say(f"{kept} no longer fits: {'; '.join(reasons)}")
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


def cache_path(wanted: Profile) -> Path:
    """Where the profile for these machines and this network is kept."""
    what = [wanted.network, wanted.precision, wanted.optimizer, wanted.memory_format]
    where = [(d.machine, d.device, d.cores, d.threads) for d in wanted.devices]
    digest = hashlib.sha256(repr((what, where)).encode()).hexdigest()[:12]
    name = re.sub(r"[^a-zA-Z0-9.-]+", "-", wanted.network.name).strip("-")[:40]
    return Path(pooch.os_cache("convoy")) / "profiles" / f"{name}-{digest}.json"


def _of_places(profile: Profile, places: Sequence[Place]) -> Profile:
    """The profile with its devices in the order of the places, and no others."""
    left = list(enumerate(profile.devices))
    order = []
    for place in places:
        found = next(
            (i, d) for i, d in left if (d.machine, d.device) == (place.machine, place.device)
        )
        left.remove(found)
        order.append(found)
    devices = tuple(device for _, device in order)
    measured = profile.all_reduce
    if measured is not None and len(order) == len(profile.devices):
        cpu_s = tuple(measured.cpu_s[i] for i, _ in order)
        measured = replace(measured, cpu_s=cpu_s)
    return replace(profile, devices=devices, all_reduce=measured)
