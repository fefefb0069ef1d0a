"""Whether a profile stands for what is at hand, and two profiles for one another."""

from __future__ import annotations

from dataclasses import replace

from convoy.cost.profile import Profile, places_of
from convoy.errors import ProfileError

FURTHEST = 4
"""How many times larger than those measured a batch may be, to be foreseen from them."""


def differences(profile: Profile, wanted: Profile) -> list[str]:
    """Why `profile` does not stand for what `wanted` was, or is to be, taken of; [] if it does.

    Of `wanted` only what identifies it is looked at, so one without times will do.
    """
    reasons = []
    for what, had, want in (
        ("network", profile.network.name, wanted.network.name),
        ("images", list(profile.network.input), list(wanted.network.input)),
        ("classes", profile.network.classes, wanted.network.classes),
        ("precision", profile.precision, wanted.precision),
        ("optimizer", profile.optimizer, wanted.optimizer),
        ("loading", profile.loading, wanted.loading),
        ("convolution algorithm", profile.conv_algorithm, wanted.conv_algorithm),
        *((f"version of {n}", profile.versions.get(n), v) for n, v in wanted.versions.items()),
    ):
        if had != want:
            reasons.append(f"{what}: taken with {had}, wanted is {want}")
    if wanted.memory_format not in ("auto", profile.memory_format):
        reasons.append(
            f"memory format: taken with {profile.memory_format}, wanted is {wanted.memory_format}"
        )
    if not reasons and profile.network.fingerprint != wanted.network.fingerprint:
        reasons.append(f"network {wanted.network.name}: its layers have changed")
    return reasons


def misfits(profile: Profile, wanted: Profile) -> list[str]:
    """As `differences`, and whether every device of `wanted` was measured as it is now."""
    reasons = differences(profile, wanted)
    if profile.batch_size * FURTHEST < wanted.batch_size:
        reasons.append(
            f"batch size: taken up to {profile.batch_size} samples, wanted are {wanted.batch_size}"
        )
    measured = dict(zip(places_of(profile.devices), profile.devices, strict=True))
    for place, want in zip(places_of(wanted.devices), wanted.devices, strict=True):
        name = f"{want.machine} ({want.device})" + (f" number {place[2]}" if place[2] > 1 else "")
        if place not in measured:
            reasons.append(f"{name} was not measured")
            continue
        for what in ("hardware", "cores", "threads"):
            had, now = getattr(measured[place], what), getattr(want, what)
            if had != now:
                reasons.append(f"{name}, {what}: taken on {had}, now it is {now}")
    return reasons


def checked(profile: Profile, wanted: Profile, source: str) -> Profile:
    """`profile`, if it stands for `wanted`.

    Raises:
        ProfileError: it does not; says why.
    """
    reasons = misfits(profile, wanted)
    if reasons:
        options = "".join(
            f" --{what} {getattr(wanted, what)}"
            for what in ("optimizer", "precision")
            if getattr(profile, what) != getattr(wanted, what)
        )
        raise ProfileError(
            f"the profile {source} does not fit: {'; '.join(reasons)}. Measure again: convoy "
            f"measure{options}"
        )
    return profile


def merged(profile: Profile, newer: Profile) -> Profile:
    """`profile` with what `newer` measured put in its place, or added.

    Of several devices at one place the first newer one takes the place of the first here, and
    so on. The devices of the all-reduces stay, or become, the first.

    Raises:
        ProfileError: the two were taken of different networks, precisions or versions.
    """
    reasons = differences(profile, newer)
    if reasons:
        raise ProfileError(f"the two profiles cannot be merged: {'; '.join(reasons)}")
    fresh = dict(zip(places_of(newer.devices), newer.devices, strict=True))
    known = dict(zip(places_of(profile.devices), profile.devices, strict=True))
    kept = [place for place in known if place not in fresh]
    order = [*fresh, *kept] if newer.all_reduce or not kept else {**known, **fresh}
    pairs = {frozenset(link.between) for link in newer.links}
    links = tuple(link for link in profile.links if frozenset(link.between) not in pairs)
    whole = not kept  # an all-reduce stands for the devices that took part in it
    return replace(
        newer,
        devices=tuple(fresh.get(place) or known[place] for place in order),
        links=(*links, *newer.links),
        all_reduce=newer.all_reduce if whole else newer.all_reduce or profile.all_reduce,
        batch_size=newer.batch_size if whole else min(profile.batch_size, newer.batch_size),
    )
