"""Ways between an edge and a cloud, in the lab, beside what the plan foresees. Needs root.

    sudo python benchmarks/split_bench.py cifar10 --run RUN --data-dir DATA [--seconds 2]
    sudo python benchmarks/split_bench.py large [--seconds 2]
    sudo python benchmarks/split_bench.py choices --run RUN --data-dir DATA [--rounds 4]

`cifar10`: the run that `split_narrow.py` left, cut at pool2 with 32 and fewer filters; links of
1 Gbit/s, 100 and 10 Mbit/s; an edge of 1.0 and of 0.25 cores; batches of 1 and of 100. `large`:
caffenet cut at pool1 and pool2 and resnet18 cut at its stages 1 and 3, both for 112 pixels, whose
weights are not trained: times and bytes, no accuracies. Pictures are parts of the two photographs
that come with scikit-learn, the edge has a core, pictures go one by one, over 10 Mbit/s in batches
of 8 too. All of it synchronous, as in the paper, and pipelined. A row of `split_bench_NAME` is a
way in a setting; of `split_once_NAME` a setting: the best way that is accurate enough, and what the
plan's first choice is worth beside it.

The best of thirteen that were measured once, on a machine whose speed wanders, is as often the
luckiest. `choices` takes what `cifar10` left, measures those within a quarter of the best, and the
plan's choice, in turns, and compares medians: `split_choices_cifar10`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from common import RESULTS, write
from convoy.api.splitting import export_split
from convoy.report.split_bench import draw_split_bench
from convoy.split.bench import Setting, again, bench, judged, settings_of, ways_of
from convoy.split.manifest import load, read_samples

MBIT = 1e6
WIDTHS = (4, 8, 12, 16)
CUTS = ("pool2", *(f"pool2:{width}" for width in WIDTHS))
WITHIN = 1.0
"""Points of accuracy that a way may lose to be chosen."""
LARGE = {
    "caffenet": ("caffenet", 112, ("pool1", "pool2")),
    "resnet18": ("resnet18", 112, ("stage1", "stage3")),
}
"""Network, pixels and cuts, by what results are called."""
PHOTOGRAPHS = 60
NEAR = 0.75
"""Of the best, measured once: below it nothing is measured again."""
PICTURES = ("picture/float32", "picture/uint8", "picture/jpeg", "picture/mosaic")
CODECS = ("float32", "uint8+zstd", "uint4+zstd")


LINKS = (1000 * MBIT, 100 * MBIT, 10 * MBIT)
OF_LARGE = settings_of(LINKS, [1.0], [1]) + settings_of(LINKS[2:], [1.0], [8])
SMALL = settings_of(LINKS, [1.0], [1, 100]) + settings_of(LINKS[1:], [0.25], [100])


def measured(
    name: str, folder: Path, ways: Sequence[str], settings: Sequence[Setting], seconds: float
) -> list[dict[str, Any]]:
    """Rows of all ways in all settings; also written and drawn."""
    manifest = load(folder)
    pictures = read_samples(folder, manifest)
    assert pictures is not None, "exported from a data set"
    rows = bench(
        folder,
        pictures,
        settings,
        ways_of(folder, ways),
        seconds=seconds,
        name=f"s{os.getpid() % 10**6}",
        watch=lambda setting, row: print(
            f"{setting}: {row['way']} {row['images_per_s']:,.0f} images/s, foreseen "
            f"{row['foreseen_images_per_s']:,.0f}",
            flush=True,
        ),
    )
    keep = ("bandwidth_bit_s", "edge_cpus", "batch_size", "mode", "way", "accuracy")
    keep += ("images_per_s", "foreseen_images_per_s", "latency_s", "foreseen_latency_s")
    keep += ("bytes_per_image", "edge_s", "server_s")
    about = f"{name}: what ways do between emulated machines, and what was foreseen."
    write(f"split_bench_{name}", [{k: row[k] for k in keep} for row in rows], about=about)
    about = f"{name}: the plan's first choice beside the best that was measured."
    write(f"split_once_{name}", judged(rows, manifest.variants[0].accuracy, WITHIN), about=about)
    draw_split_bench(rows, RESULTS / f"split_bench_{name}.png")
    return rows


def ratios(rows: Sequence[dict[str, Any]], whole: float | None) -> list[dict[str, Any]]:
    """What a split is worth at 10 Mbit/s, with an edge of a core, in batches of 100.

    The split is the best that is accurate enough: in images per second where batches overlap, and
    in latency where they go one at a time. The last row is of latency with batches of one image.
    """

    def of(way: str, batch: int, mode: str) -> dict[str, Any]:
        key = (10 * MBIT, 1.0, batch, mode, way)
        names = ("bandwidth_bit_s", "edge_cpus", "batch_size", "mode", "way")
        return next(row for row in rows if tuple(row[n] for n in names) == key)

    least = (whole or 0) - WITHIN / 100 - 1e-9
    splits = [
        row["way"]
        for row in rows
        if row["way"].partition("/")[0] not in ("edge", "picture")
        and "edge" not in row["way"]
        and (row["accuracy"] or 0) >= least
    ]
    chosen = max(set(splits), key=lambda way: of(way, 100, "pipelined")["images_per_s"])
    fastest = of(chosen, 100, "pipelined")["images_per_s"]
    found = [
        {
            "what": f"throughput of {chosen} / {way}",
            "measured": fastest / of(way, 100, "pipelined")["images_per_s"],
            "to reach": reach,
        }
        for way, reach in (("picture/float32", 20), ("picture/uint8", 5), ("picture/mosaic", 1.3))
    ]
    for batch, reach in ((100, 10), (1, None)):
        quick = min(set(splits), key=lambda way: of(way, batch, "synchronous")["latency_s"])
        slow_s = of("picture/float32", batch, "synchronous")["latency_s"]
        found.append(
            {
                "what": f"latency one at a time, batch {batch}, of picture/float32 / {quick}",
                "measured": slow_s / of(quick, batch, "synchronous")["latency_s"],
                "to reach": reach,
            }
        )
    return found


def cifar10(options: argparse.Namespace, folder: Path) -> None:
    """The paper's network."""
    out = folder / "exported"
    export_split(options.run, CUTS, out, data_dir=options.data_dir, say=print)
    ways = ["edge", "edge pool2:8", *PICTURES, *(f"pool2/{codec}" for codec in CODECS)]
    ways += [f"pool2:{width}/uint4+zstd" for width in WIDTHS]
    rows = measured("cifar10", out, ways, SMALL, options.seconds)
    whole = load(out).variants[0].accuracy
    about = "cifar10-full at 10 Mbit/s, an edge of a core: ratios that are to be reached."
    write("split_ratios", ratios(rows, whole), about=about)


def choices(options: argparse.Namespace, folder: Path) -> None:
    """The plan's choices beside the best of medians."""
    out = folder / "exported"
    export_split(options.run, CUTS, out, data_dir=options.data_dir)
    manifest = load(out)
    pictures = read_samples(out, manifest)
    assert pictures is not None, "exported from a data set"
    keys = ("bandwidth_bit_s", "edge_cpus", "batch_size", "mode")
    once, chosen = read("split_bench_cifar10"), read("split_once_cifar10")
    least = (manifest.variants[0].accuracy or 0) - WITHIN / 100 - 1e-9

    def contenders(setting: Setting) -> list[str]:
        key = tuple(getattr(setting, name) for name in keys)
        these = [
            row
            for row in once
            if tuple(row[name] for name in keys) == key and (row["accuracy"] or 1) >= least
        ]
        best = max(row["images_per_s"] for row in these)
        plans = next(row["chosen"] for row in chosen if tuple(row[n] for n in keys) == key)
        near = [row["way"] for row in these if row["images_per_s"] >= NEAR * best]
        return list(dict.fromkeys([*near, plans]))

    rows = again(
        *(out, pictures, SMALL, contenders, options.rounds),
        seconds=options.seconds,
        name=f"s{os.getpid() % 10**6}",
        watch=lambda setting, row: print(
            f"{setting}: {row['way']} {row['images_per_s']:,.0f} images/s", flush=True
        ),
    )
    found = []
    for before in chosen:
        key = tuple(before[name] for name in keys)
        speeds: dict[str, list[float]] = {}
        for row in rows:
            if tuple(row[name] for name in keys) == key:
                speeds.setdefault(row["way"], []).append(row["images_per_s"])
        medians = {way: median(values) for way, values in speeds.items()}
        best = max(medians, key=medians.__getitem__)
        found.append(
            dict(zip(keys, key, strict=True))
            | {
                "contenders": len(medians),
                "rounds": options.rounds,
                "best": best,
                "images_per_s": medians[best],
                "chosen": before["chosen"],
                "chosen_of_best": medians[before["chosen"]] / medians[best],
                "mean_error": before["mean_error"],
                "largest_error": before["largest_error"],
            }
        )
    about = "cifar10: the plan's first choice beside the best, by medians of rounds in turns."
    write("split_choices_cifar10", found, about=about)


def read(name: str) -> list[dict[str, Any]]:
    """The rows of an earlier result."""
    rows: list[dict[str, Any]] = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    return rows


def large(options: argparse.Namespace, folder: Path) -> None:
    """Networks for ImageNet, untrained."""
    for name, (network, pixels, cuts) in LARGE.items():
        run, out = folder / f"run-{name}", folder / f"exported-{name}"
        pictures = folder / f"pictures-{name}"
        photographs(pictures, pixels)
        command = [sys.executable, "-m", "convoy", "train", "--network", network]
        command += ["--data", f"folder:{pictures}", "--steps", "1"]
        command += ["--batch-size", "4", "--lr", "0.0001", "--strategy", "single"]
        subprocess.run([*command, "--out", str(run)], check=True, stdout=subprocess.DEVNULL)
        export_split(run, list(cuts), out, accuracy=False, say=print)
        ways = ["edge", *PICTURES[:3]]
        ways += [f"{cut}/{codec}" for cut in cuts for codec in ("float32", "uint4+zstd")]
        measured(name, out, ways, OF_LARGE, options.seconds)


def photographs(folder: Path, pixels: int) -> None:
    """Square parts of two photographs, of all sizes, as a folder that is a data set."""
    rng = np.random.default_rng(0)
    for number, whole in enumerate(load_sample_images().images):
        (folder / f"photograph{number}").mkdir(parents=True)
        for part in range(PHOTOGRAPHS):
            side = int(rng.integers(pixels, min(whole.shape[:2])))
            top, left = (int(rng.integers(0, size - side)) for size in whole.shape[:2])
            square = Image.fromarray(whole[top : top + side, left : left + side])
            square.resize((pixels, pixels)).save(folder / f"photograph{number}" / f"{part}.png")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=["cifar10", "large", "choices"])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        studies = {"cifar10": cifar10, "large": large, "choices": choices}
        studies[options.study](options, Path(name))


if __name__ == "__main__":
    main()
