"""`convoy split bench`."""

from __future__ import annotations

import json as json_format
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.table import Table
from typer import Argument, Option

from convoy.cli.console import console, plain, print_json, stdout_for
from convoy.cluster import format_bandwidth, parse_bandwidth
from convoy.errors import LabError, UnknownNameError, UsageError
from convoy.runtime.json_lines import finite
from convoy.runtime.run_folder import write_text


def bench(
    folder: Annotated[Path, Argument(help="What `convoy split export` made.")],
    bandwidth: Annotated[
        str, Option(help="Of the link, one or several.")
    ] = "1 Gbit/s,100 Mbit/s,10 Mbit/s",
    edge_cpus: Annotated[str, Option(help="Cores of the edge, one or several.")] = "0.25,1",
    batch_size: Annotated[str, Option(help="Images that travel together.")] = "1,100",
    mode: Annotated[
        str, Option(help="pipelined, synchronous (a batch after the one before), or both.")
    ] = "synchronous,pipelined",
    way: Annotated[
        list[str] | None, Option(help="A way, as pool2/uint8; several times. All without it.")
    ] = None,
    pictures: Annotated[
        Path | None, Option(help="Pictures as a NumPy file; those that were exported without it.")
    ] = None,
    accuracy_within: Annotated[
        float, Option(help="Points of accuracy that a way may lose to be chosen.", min=0.0)
    ] = 1.0,
    seconds: Annotated[float, Option(help="Of each measurement.", min=0.5)] = 3.0,
    out: Annotated[Path | None, Option(help="A folder for bench.json and bench.png.")] = None,
    json: Annotated[bool, Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Go every way between two emulated machines, and set it beside what the plan foresees.

    Needs root, as `convoy lab` does: it builds a lab of its own.
    """
    try:
        from convoy import lab
        from convoy.split.bench import bench as measured
        from convoy.split.bench import judged, settings_of, ways_of
        from convoy.split.manifest import load, read_samples
        from convoy.split.measuring import MODES
    except ModuleNotFoundError as error:
        raise LabError(
            f"the bench needs {error.name}: pip install 'convoy-cnn[split,lab]' (Linux only)"
        ) from None
    lab.check_possible()
    manifest = load(folder)
    samples = _pictures(pictures) if pictures else read_samples(folder, manifest)
    if samples is None:
        raise UsageError(f"{folder} has no pictures in it: give some with --pictures FILE.npy")
    modes = _parts(mode)
    for name in modes:
        if name not in MODES:
            raise UnknownNameError("mode", name, MODES)
    settings = settings_of(
        [parse_bandwidth(text) for text in _parts(bandwidth)],
        _numbers(edge_cpus, "--edge-cpus", float),
        _numbers(batch_size, "--batch-size", int),
        modes,
    )
    ways = ways_of(folder, way)
    output = console(as_json=json)
    with stdout_for(as_json=json):
        output.print(f"{len(settings)} settings, {seconds:g} s for each way")
        rows = measured(
            folder,
            samples,
            settings,
            ways,
            seconds=seconds,
            name=f"b{os.getpid() % 10**6}",
            watch=lambda setting, row: output.print(
                f"{setting}: {plain(row['way'])} {row['images_per_s']:,.0f} images/s"
            ),
        )
        found: dict[str, Any] = {"folder": str(folder), "rows": rows, "settings": []}
        found["settings"] = judged(rows, manifest.variants[0].accuracy, accuracy_within)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            write_text(out / "bench.json", json_format.dumps(finite(found), indent=1) + "\n")
            from convoy.report.split_bench import draw_split_bench

            draw_split_bench(rows, out / "bench.png")
    if json:
        print_json(found)
        return
    for table in _tables(rows):
        output.print(table)
    output.print(_verdict(found["settings"]))


def _numbers(text: str, option: str, kind: Callable[[str], Any]) -> list[Any]:
    """Numbers above 0, with commas between them. Raises UsageError."""
    found = []
    for part in _parts(text):
        try:
            found.append(kind(part))
        except ValueError:
            found.append(0)
        if not 0 < found[-1] < math.inf:
            raise UsageError(f"{option} {part}: expected a number above 0, or several: 1,100")
    return found


def _pictures(path: Path) -> Any:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise UsageError(
            f"--pictures {path} is no array of NumPy's: expected uint8 [n, height, width, "
            "channels], as numpy.save writes it"
        ) from None
    if found.dtype != np.uint8 or found.ndim != 4 or not len(found):
        raise UsageError(
            f"--pictures {path} has {found.dtype} {list(found.shape)}; expected uint8 "
            "[n, height, width, channels]"
        )
    return found


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """One for each setting, its ways by what was measured."""
    found = []
    keys = ("bandwidth_bit_s", "edge_cpus", "batch_size", "mode")
    for key in dict.fromkeys(tuple(row[k] for k in keys) for row in rows):
        link, cpus, size, mode = key
        title = f"{format_bandwidth(link)}, edge {cpus:g}, batches of {size}, {mode}"
        table = Table(title=title, header_style="bold", title_justify="left")
        table.add_column("way")
        for column in ("images/s", "foreseen", "latency, ms", "foreseen", "bytes an image"):
            table.add_column(column, justify="right")
        these = [row for row in rows if tuple(row[k] for k in keys) == key]
        for row in sorted(these, key=lambda r: -r["images_per_s"]):
            table.add_row(
                plain(row["way"]),
                f"{row['images_per_s']:,.0f}",
                f"{row['foreseen_images_per_s']:,.0f}",
                f"{1000 * row['latency_s']:.1f}" if mode == "synchronous" else "",
                f"{1000 * row['foreseen_latency_s']:.1f}" if mode == "synchronous" else "",
                f"{row['bytes_per_image']:,.0f}",
            )
        found.append(table)
    return found


def _verdict(settings: Sequence[dict[str, Any]]) -> str:
    near = sum(row["chosen_of_best"] >= 0.95 for row in settings)
    error = sum(row["mean_error"] for row in settings) / len(settings)
    return (
        f"the plan's first choice is within 5% of the best in {near} of {len(settings)} settings; "
        f"mean error of what it foresees {error:.0%}"
    )
