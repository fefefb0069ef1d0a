"""Every way, really gone, between two emulated machines: `convoy split bench`.

    edge (a part of a core) ══ link ══ cloud (a core)

The lab is built once for each number of the edge's cores; its link changes between measurements.
What is foreseen of a way is made of times on this machine, taken right before and right after it is
gone: a machine that others use too is not as fast at one moment as at another. What the plan would
choose is judged by times that are taken before anything else, of all ways in turns, as a plan is.
"""

from __future__ import annotations

import itertools
import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convoy.cluster import Cluster, format_bandwidth, parse_cluster
from convoy.errors import LabError, ServerError
from convoy.lab import Lab, emulated
from convoy.split.client.options import Options
from convoy.split.client.ways import open_ways
from convoy.split.costs import Candidate, Link, Wish, cost
from convoy.split.foreseen import candidates_of_folder
from convoy.split.making.timing import QUICK
from convoy.split.measuring import MODES
from convoy.split.pictures import Pixels
from convoy.split.planning import Place, at_places, between_places

EDGE, CLOUD = "edge", "cloud"
LATENCY_S = 5e-5
"""Of an emulated link, one way."""
OBJECTIVE = {"pipelined": "throughput", "synchronous": "latency"}
"""What the plan is asked for: one batch after the other is as fast as each is through."""
EVERY = Options(accuracy_within=100.0)
ANSWER_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One of the circumstances that ways are measured in."""

    bandwidth_bit_s: float
    edge_cpus: float
    batch_size: int
    mode: str

    def __str__(self) -> str:
        link = format_bandwidth(self.bandwidth_bit_s)
        return f"{link}, edge {self.edge_cpus:g}, batch {self.batch_size}, {self.mode}"


def settings_of(
    bandwidths: Sequence[float],
    edge_cpus: Sequence[float],
    batch_sizes: Sequence[int],
    modes: Sequence[str] = MODES,
) -> list[Setting]:
    """All combinations, those of one lab together."""
    return [
        Setting(bandwidth_bit_s=bandwidth, edge_cpus=cpus, batch_size=size, mode=mode)
        for cpus in edge_cpus
        for bandwidth in bandwidths
        for size in batch_sizes
        for mode in modes
    ]


def world(edge_cpus: float, bandwidth_bit_s: float) -> Cluster:
    """An edge machine and a cloud of one core."""
    return parse_cluster(
        f'[[machine]]\nname = "{EDGE}"\ncpus = {edge_cpus}\n'
        f'[[machine]]\nname = "{CLOUD}"\ncpus = 1.0\n'
        f'[network]\nbandwidth = "{format_bandwidth(bandwidth_bit_s)}"\n'
    )


def bench(
    folder: Path,
    pictures: Pixels,
    settings: Sequence[Setting],
    ways: Sequence[str],
    *,
    seconds: float,
    name: str,
    watch: Callable[[Setting, dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Measure all ways in all settings.

    Args:
        folder: what `convoy split export` made.
        pictures: uint8 [n, height, width, channels]: real ones, since codecs depend on them.
        seconds: of each measurement.
        name: the lab's.
        watch: is told each row as it comes.

    Raises:
        LabError, ServerError: the lab cannot be built, or the server does not start.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="convoy-bench-") as temporary:
        file = Path(temporary) / "pictures.npy"
        np.save(file, pictures)
        planned = {
            size: {c.name: c for c in candidates_of_folder(folder, pictures, size, ways)}
            for size in dict.fromkeys(setting.batch_size for setting in settings)
        }
        for cpus in dict.fromkeys(setting.edge_cpus for setting in settings):
            of_lab = [setting for setting in settings if setting.edge_cpus == cpus]
            first = world(cpus, of_lab[0].bandwidth_bit_s)
            with emulated(first, name, ray=False) as lab, served(lab, folder) as server:
                for setting, way in itertools.product(of_lab, ways):
                    lab.set_bandwidth(EDGE, CLOUD, setting.bandwidth_bit_s)
                    before = _timed(folder, pictures, setting, way)
                    row = measured(lab, folder, file, server, setting, way, seconds)
                    after = _timed(folder, pictures, setting, way)
                    row |= _beside(_between(before, after), setting)
                    of_plan = _beside(planned[setting.batch_size][way], setting)
                    row["foreseen_measure"] = of_plan["foreseen_measure"]
                    rows.append(row)
                    watch(setting, row)
    return rows


def again(
    folder: Path,
    pictures: Pixels,
    settings: Sequence[Setting],
    ways: Callable[[Setting], Sequence[str]],
    rounds: int,
    *,
    seconds: float,
    name: str,
    watch: Callable[[Setting, dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Measure the ways that may be a setting's best once more, in turns, a row for each round.

    The fastest of many that were measured once is as often the luckiest: of rounds in turns each
    has a median.

    Args:
        folder, pictures, settings, seconds, name, watch: see `bench`.
        ways: of a setting, those to measure.
        rounds: of all of them, each begun by another.

    Raises:
        LabError, ServerError: see `bench`.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="convoy-bench-") as temporary:
        file = Path(temporary) / "pictures.npy"
        np.save(file, pictures)
        for cpus in dict.fromkeys(setting.edge_cpus for setting in settings):
            of_lab = [setting for setting in settings if setting.edge_cpus == cpus]
            first = world(cpus, of_lab[0].bandwidth_bit_s)
            with emulated(first, name, ray=False) as lab, served(lab, folder) as server:
                for setting in of_lab:
                    lab.set_bandwidth(EDGE, CLOUD, setting.bandwidth_bit_s)
                    these = list(ways(setting))
                    for number in range(rounds):
                        turn = number % len(these)
                        for way in these[turn:] + these[:turn]:
                            rows.append(measured(lab, folder, file, server, setting, way, seconds))
                            watch(setting, rows[-1])
    return rows


def _timed(folder: Path, pictures: Pixels, setting: Setting, way: str) -> Candidate:
    (found,) = candidates_of_folder(folder, pictures, setting.batch_size, [way], QUICK)
    return found


def _between(before: Candidate, after: Candidate) -> Candidate:
    """A candidate whose times are the means of two."""

    def mean(a: float, b: float) -> float:
        return (a + b) / 2

    return replace(
        before,
        edge_s=before.edge_s.with_(mean, after.edge_s),
        cloud_s=before.cloud_s.with_(mean, after.cloud_s),
        edge_rest_s=mean(before.edge_rest_s, after.edge_rest_s),
        cloud_rest_s=mean(before.cloud_rest_s, after.cloud_rest_s),
    )


def ways_of(folder: Path, named: Sequence[str] | None = None) -> list[str]:
    """Names of a folder's ways, or those that are named.

    Raises:
        UnknownNameError: it has no such way.
    """
    ways = open_ways(folder, EVERY, is_timed=False)
    return [ways.named(name).name for name in named or ()] or [way.name for way in ways.all]


def _beside(candidate: Candidate, setting: Setting) -> dict[str, float | None]:
    """What was foreseen of a way in a setting, and how accurate it is."""
    edge, cloud = Place(name=EDGE, cores=setting.edge_cpus), Place(name=CLOUD, cores=1.0)
    link = Link(bandwidth_bit_s=setting.bandwidth_bit_s, latency_s=LATENCY_S)
    there = at_places(candidate, edge, cloud)
    cost_ = cost(there, between_places(link, edge, cloud), setting.batch_size)
    is_synchronous = setting.mode == "synchronous"
    pace = cost_.synchronous_images_per_s if is_synchronous else cost_.images_per_s
    wish = Wish(objective=OBJECTIVE[setting.mode], count=setting.batch_size)
    return {
        "foreseen_images_per_s": pace,
        "foreseen_latency_s": cost_.latency_s,
        "foreseen_measure": wish.measure(cost_),
        "accuracy": candidate.accuracy,
    }


def judged(
    rows: Sequence[dict[str, Any]], accuracy: float | None = None, within: float = 1.0
) -> list[dict[str, Any]]:
    """By setting: which way is best, which one the plan puts first, and what that is worth.

    Args:
        rows: as `bench` gives them.
        accuracy: of the full network; ways that are known to be more than `within` points below it
            are nobody's choice.
        within: see there.
    """
    if accuracy is not None:
        least = accuracy - within / 100 - 1e-9
        rows = [row for row in rows if row["accuracy"] is None or row["accuracy"] >= least]
    keys = ("bandwidth_bit_s", "edge_cpus", "batch_size", "mode")
    found = []
    for key in dict.fromkeys(tuple(row[k] for k in keys) for row in rows):
        these = [row for row in rows if tuple(row[k] for k in keys) == key]
        best = max(these, key=lambda row: row["images_per_s"])
        chosen = min(these, key=lambda row: row["foreseen_measure"])
        errors = [abs(r["foreseen_images_per_s"] / r["images_per_s"] - 1) for r in these]
        found.append(
            dict(zip(keys, key, strict=True))
            | {
                "best": best["way"],
                "images_per_s": best["images_per_s"],
                "chosen": chosen["way"],
                "chosen_of_best": chosen["images_per_s"] / best["images_per_s"],
                "mean_error": sum(errors) / len(errors),
                "largest_error": max(errors),
            }
        )
    return found


@contextmanager
def served(lab: Lab, folder: Path, *options: str) -> Iterator[str]:
    """The folder's models on the cloud machine; yields the server's address."""
    process = serve(lab, folder, *options)
    try:
        yield address_of(process)
    finally:
        process.terminate()
        try:
            process.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def serve(lab: Lab, folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start `convoy split serve` on the cloud machine."""
    command = [sys.executable, "-m", "convoy", "split", "serve", str(folder)]
    command += ["--host", lab.addresses[CLOUD], "--insecure", *(options or ("--port", "0"))]
    return lab.start(
        CLOUD,
        [*command, "--http-port", "0", "--log-level", "warning", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def address_of(process: subprocess.Popen[str]) -> str:
    """Where a server that was started listens. Raises ServerError."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], ANSWER_S)[0]:
        raise ServerError(f"convoy split serve was not ready within {ANSWER_S:g} s")
    line = process.stdout.readline()
    if not line:
        raise ServerError(f"convoy split serve ended with status {process.wait()}")
    return f"grpc://{json.loads(line)['grpc']}"


def measured(
    lab: Lab,
    folder: Path,
    file: Path,
    server: str,
    setting: Setting,
    way: str,
    seconds: float,
) -> dict[str, Any]:
    """A way's row, out of a process on the edge."""
    command = [sys.executable, "-m", "convoy.split.measuring", str(folder)]
    command += ["--pictures", str(file), "--server", server, "--way", way]
    command += ["--batch-size", str(setting.batch_size), "--mode", setting.mode]
    command += ["--seconds", str(seconds)]
    pipe = subprocess.PIPE
    process = lab.start(EDGE, command, stdout=pipe, stderr=pipe, text=True)
    try:
        found, said = process.communicate()
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        last = (said.strip().splitlines() or ["no word"])[-1]
        raise LabError(f"measuring {setting} failed: {last}")
    about = {"bandwidth_bit_s": setting.bandwidth_bit_s, "edge_cpus": setting.edge_cpus}
    return {**about, **json.loads(found)}
