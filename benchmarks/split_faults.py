"""What an edge client makes of a cloud that dies and a link that breaks or slows. Needs root.

    sudo python benchmarks/split_faults.py faults DIR [--kills 20] [--cuts 20]
    sudo python benchmarks/split_faults.py link DIR

DIR is what `convoy split export` made. `faults`: a stream of 10,000 pictures, during which the
server is killed (and started again a second later) and the link is cut for 5 s, in turn. `link`:
as many pictures as there is room for, in batches of 100, while the link goes from 100 to 5 and
back to 100 Mbit/s; beside it each way by itself at both.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from common import write
from convoy import lab
from convoy.split.bench import CLOUD, EDGE, Setting, address_of, measured, serve, world
from convoy.split.client import Options
from convoy.split.client.ways import open_ways

HERE = Path(__file__).parent
DOWN_S, CUT_S, CALM_S, START_S = 1.0, 5.0, 2.0, 2.5
PACE = 36.0
IMAGES = 10_000
FAST, SLOW, PHASE_S = 100e6, 5e6, 20.0


def stream(inside: lab.Lab, options: argparse.Namespace, out: Path, *more: str) -> Any:
    """The client, started on the edge."""
    command = [sys.executable, str(HERE / "split_stream.py"), str(options.folder)]
    command += ["--pictures", str(options.pictures), "--out", str(out), *more]
    return inside.start(EDGE, command)


def wait_for(out: Path) -> None:
    """Until the stream has begun."""
    while not out.is_file() or not out.stat().st_size:
        time.sleep(0.1)


def read(out: Path) -> tuple[list[list[Any]], dict[str, Any]]:
    """Results and summary."""
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    return lines[:-1], lines[-1]


def is_alone(where: str | None) -> bool:
    """Whether the edge computed all of it: "edge", or "edge pool2:8"."""
    return where is not None and where.partition(" ")[0] == "edge"


def faults(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One row: what became of the pictures."""
    out = folder / "stream.jsonl"
    with lab.emulated(world(1.0, FAST), f"f{os.getpid() % 10**6}", ray=False) as inside:
        server = serve(inside, options.folder, "--port", "8001")
        address = address_of(server)
        each_s = (CUT_S + DOWN_S + START_S + 2 * CALM_S) / 2
        images = max(options.images, int(PACE * each_s * (options.kills + options.cuts)))
        client = stream(
            inside, options, out, "--server", address, "--images", str(images), "--pace", str(PACE)
        )
        wait_for(out)
        kills, cuts = options.kills, options.cuts
        while (kills or cuts) and client.poll() is None:
            time.sleep(CALM_S)
            if kills:
                server.kill()
                server.wait()
                time.sleep(DOWN_S)
                server = serve(inside, options.folder, "--port", "8001")
                address_of(server)
                kills -= 1
                time.sleep(CALM_S)
            if cuts:
                inside.cut(EDGE, CLOUD)
                time.sleep(CUT_S)
                inside.mend(EDGE, CLOUD)
                cuts -= 1
        status = client.wait()
        server.terminate()
        server.wait()
    rows, summary = read(out)
    indices = [row[1] for row in rows]
    gaps = [b[0] - a[0] for a, b in itertools.pairwise(rows)]
    return [
        {
            "images": images,
            "kills": options.kills - kills,
            "cuts of 5 s": options.cuts - cuts,
            "status": status,
            "lost": images - len(set(indices)),
            "doubled": len(indices) - len(set(indices)),
            "out of order": sum(b < a for a, b in itertools.pairwise(indices)),
            "without a label": sum(row[2] is None for row in rows),
            "longest gap, s": max(gaps),
            "longest latency, s": max(row[4] for row in rows),
            "outages noticed": summary["outages"],
            "by the cloud": sum(not is_alone(row[3]) for row in rows),
            "by the edge": sum(is_alone(row[3]) for row in rows),
        }
    ]


def link(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A row for each phase: how soon the choice followed, and how many images it was worth."""
    rows: list[dict[str, Any]] = []
    with lab.emulated(world(1.0, FAST), f"f{os.getpid() % 10**6}", ray=False) as inside:
        server = serve(inside, options.folder, "--port", "0")
        address = address_of(server)
        batch = ("--server", address, "--batch-size", "100", "--deadline", "0.8")
        out = folder / "stream.jsonl"
        client = stream(inside, options, out, *batch, "--seconds", str(3 * PHASE_S))
        wait_for(out)
        for bandwidth in (FAST, SLOW, FAST):
            inside.set_bandwidth(EDGE, CLOUD, bandwidth)
            time.sleep(PHASE_S)
        client.wait()
        results, summary = read(out)
        fixed = {}
        for bandwidth in (FAST, SLOW):
            inside.set_bandwidth(EDGE, CLOUD, bandwidth)
            setting = Setting(
                bandwidth_bit_s=bandwidth, edge_cpus=1.0, batch_size=100, mode="pipelined"
            )
            for way in options.way:
                row = measured(inside, options.folder, options.pictures, address, setting, way, 4.0)
                fixed[bandwidth, way] = row["images_per_s"]
        server.terminate()
        server.wait()
    for number, bandwidth in enumerate((FAST, SLOW, FAST)):
        begin, end = number * PHASE_S, (number + 1) * PHASE_S
        settled = [row[3] for row in results if end - 5 <= row[0] < end]
        way = max(set(settled), key=settled.count)
        followed = next((row[0] - begin for row in results if row[0] >= begin and row[3] == way), 0)
        best = max(options.way, key=lambda w: fixed[bandwidth, w])
        rows.append(
            {
                "Mbit/s": bandwidth / 1e6,
                "settled on": way,
                "after, s": followed,
                "images/s": pace(results, begin + 5, end),
                "best fixed way": best,
                "its images/s": fixed[bandwidth, best],
                "ratio": pace(results, begin + 5, end) / fixed[bandwidth, best],
                "latency, median s": median(r[4] for r in results if begin + 5 <= r[0] < end),
                "switches": len(summary["switches"]),
            }
        )
    return rows


def pace(rows: list[list[Any]], begin: float, end: float) -> float:
    """Images per second between two moments."""
    return sum(begin <= row[0] < end for row in rows) / (end - begin)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=["faults", "link"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=Path, help="as a NumPy file; those exported without it")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--way", action="append", help="fixed ways to compare with")
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    options.pictures = (options.pictures or options.folder / "samples.npy").resolve()
    options.way = options.way or [way.name for way in open_ways(options.folder, Options()).all]
    with tempfile.TemporaryDirectory() as name:
        if options.study == "faults":
            rows = faults(options, Path(name))
            write("split_faults", rows, about="A stream while servers are killed and links cut.")
        else:
            rows = link(options, Path(name))
            write("split_link", rows, about="The choice of a client while its link changes.")


if __name__ == "__main__":
    main()
