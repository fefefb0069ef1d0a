"""`convoy.measure`, `plan`, `compare` and `simulate`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from convoy.api.requests import (
    Network,
    job_of,
    label_of,
    made_up,
)
from convoy.cluster import parse_bandwidth
from convoy.cost.layers import facts_of
from convoy.cost.profile import Profile
from convoy.cost.profile import load as load_profile
from convoy.cost.profile_fit import checked, differences, merged
from convoy.cost.world import world_of
from convoy.errors import ProfileError, UsageError
from convoy.planner import rank_plans
from convoy.report.plans import PlanReport
from convoy.runtime.comparing import Comparison, compare_at
from convoy.runtime.deciding import task_of
from convoy.runtime.ingredients import build_network, open_data
from convoy.runtime.json_lines import finite
from convoy.runtime.observer import LogObserver, Observer
from convoy.runtime.placement import cluster_of, places
from convoy.runtime.pool import pool
from convoy.runtime.profiles import check_cores, contradictions, fitting, measured
from convoy.runtime.run_folder import (
    check_vacant,
    write_text,
)
from convoy.runtime.survey import identity
from convoy.scaling import ScalingSettings, Simulation, simulate_scaling
from convoy.strategies import STRATEGIES, candidates


def measure(
    network: Network,
    *,
    out: str | Path | None = None,
    merge: bool = False,
    dataset: Any = None,
    observer: Observer | None = None,
    verbose: bool = False,
    **options: Any,
) -> Profile:
    """Measure machines and links with a network; returns the profile, and leaves it in a file.

    It is kept in the cache as well, where later plans for the same machines find it.

    Args:
        network: as for `train`.
        out: the file; without it the profile is returned, and in the cache only.
        merge: add to the profile that is in the file, instead of replacing it.
        dataset: what is loaded while measuring; without it images of the network's published
            shape, made up.
        options: those of `train` that say where and with what: workers, cluster, batch_size,
            optimizer, precision, memory_format, threads_per_worker.

    Raises:
        ConvoyError: see `convoy.errors`. Nothing is written then.
    """
    job = job_of(network, dataset, options)
    watching = observer or LogObserver()
    before = load_profile(Path(out)) if out is not None and merge and Path(out).exists() else None
    if before is not None:
        if job.settings.memory_format == "auto":  # one layout for all
            layout = replace(job.settings, memory_format=before.memory_format)
            job = replace(job, settings=layout)
        reasons = differences(before, identity(job))
        if reasons:
            raise ProfileError(f"cannot add to {out}: {'; '.join(reasons)}")
    with places(job.settings, watching, verbose=verbose) as found, pool() as processes:
        profile = measured(job, found, watching, processes)
    if before is not None:
        profile = merged(before, profile)
    if out is not None:
        profile.save(Path(out))
    return profile


def plan(
    network: Network,
    *,
    profile: Profile | str | Path | None = None,
    strategies: Sequence[str] | None = None,
    bandwidth: str | float | None = None,
    dataset: Any = None,
    observer: Observer | None = None,
    verbose: bool = False,
    **options: Any,
) -> PlanReport:
    """Predict what each way of training on these machines costs, before anything is run.

    With a `profile` no machine is asked for anything. Without one, the cached profile of these
    machines and this network is used if it still fits; otherwise they are measured.

    Args:
        network: as for `train`.
        profile: measured figures, or the file that has them.
        strategies: the names of those to compare; all without it.
        bandwidth: of all links between machines, in place of what was measured: bits/s, or a
            text like "100 Mbit/s".
        dataset: as for `measure`.
        options: as for `measure`, and strategies' own.

    Raises:
        ProfileError: the profile is of something else; says of what.
        ConvoyError: see `convoy.errors`.
    """
    watching = observer or LogObserver()
    taken = load_profile(Path(profile)) if isinstance(profile, str | Path) else profile
    if taken is not None and dataset is None and "data" not in options:
        dataset = made_up(taken.network.input, taken.network.classes)
    job = job_of(network, dataset, options)
    settings = job.settings
    ways = candidates(settings.strategy_options, strategies or tuple(STRATEGIES))
    cluster = cluster_of(settings)
    if taken is not None and settings.workers not in (None, len(taken.devices)):
        raise UsageError(
            f"--workers {settings.workers} does not go with this profile, which is of "
            f"{len(taken.devices)} devices. Leave it out, or measure again: convoy measure"
        )
    if taken is not None:
        if cluster is not None:
            check_cores(taken, cluster)
        threads = settings.threads_per_worker
        other = [d.machine for d in taken.devices if threads and d.threads != threads]
        if other:
            raise UsageError(
                f"--threads-per-worker {threads} does not go with this profile: {other[0]} was "
                "measured with another number. Leave it out, or measure again: convoy measure"
            )
        source = str(profile) if isinstance(profile, str | Path) else "given"
        taken = checked(taken, identity(job), source)
    else:
        with places(settings, watching, verbose=verbose) as found, pool() as processes:
            taken = fitting(job, found, watching, processes, given=settings.profile)
    data = open_data(job)
    model = build_network(job.network, data, settings.seed)
    task = task_of(settings, facts_of(model, data.train.image_shape))
    world = world_of(taken, cluster)
    if bandwidth is not None:
        bits = parse_bandwidth(bandwidth) if isinstance(bandwidth, str) else bandwidth
        world = world.at(bits / 8)
    elif cluster is not None:
        for contradiction in contradictions(taken, cluster):
            watching.say(contradiction, "warning")
    ranking = rank_plans(world, task, ways)
    return PlanReport(network=settings.network, ranking=ranking, profile=taken)


def compare(
    network: Network,
    *,
    data: str | None = None,
    dataset: Any = None,
    strategies: Sequence[str] | None = None,
    repeats: int = 3,
    equal: bool = False,
    each_single: bool = False,
    target_accuracy: float | None = None,
    out: str | Path | None = None,
    observer: Observer | None = None,
    verbose: bool = False,
    **options: Any,
) -> Comparison:
    """Run strategies side by side from the same start, and compare with what was predicted.

    Args:
        strategies: their names; all without it.
        repeats: how many times each is run, in turns.
        equal: run with equal shares over all machines, too.
        each_single: run every device alone, and not only the fastest.
        target_accuracy: on the test set; the time to it is noted.
        out: a folder for all runs, comparison.json and comparison.png.
        options: those of `train`.

    Raises:
        ConvoyError: see `convoy.errors`.
    """
    if repeats < 1:
        raise UsageError(f"--repeats {repeats}: expected 1 or more")
    if target_accuracy is not None and not (options.get("steps") or options.get("epochs")):
        raise UsageError("--target-accuracy needs --epochs or --steps: how long may it take?")
    if target_accuracy is not None and not 0 < target_accuracy <= 1:
        raise UsageError(f"--target-accuracy {target_accuracy}: expected a part of 1, as 0.97")
    folder = Path(out) if out else Path("runs") / f"compare-{time.strftime('%Y%m%d-%H%M%S')}"
    check_vacant(folder)
    job = job_of(network, dataset, options | ({"data": data} if data else {}))
    candidates(job.settings.strategy_options, strategies or tuple(STRATEGIES))  # or nothing starts
    comparison = compare_at(
        job,
        strategies or tuple(STRATEGIES),
        observer or LogObserver(),
        out=folder,
        repeats=repeats,
        equal=equal,
        each_single=each_single,
        target_accuracy=target_accuracy,
        verbose=verbose,
    )
    from convoy.report.comparison import draw_comparison  # matplotlib takes its time

    write_text(folder / "comparison.json", json.dumps(finite(comparison.to_dict()), indent=1))
    draw_comparison(
        comparison.runs,
        f"{comparison.network} on {comparison.dataset}, batch of {comparison.batch_size}",
        folder / "comparison.png",
    )
    return comparison


def simulate(
    network: Network | None, settings: ScalingSettings, *, out: str | Path | None = None
) -> Simulation:
    """Predict a network's training on more and more equal nodes; see `ScalingSettings`.

    `out` is a folder for the picture. Raises UsageError where something needed is nowhere said.
    """
    found = simulate_scaling(network, "" if network is None else label_of(network), settings)
    if out is not None:
        from convoy import report  # matplotlib takes its time

        report.draw_scaling(found.to_dict(), Path(out))
    return found
