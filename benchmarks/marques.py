"""The questions of Marques, Falcao & Alexandre, answered from what `split_networks.py` measured.

    python benchmarks/marques.py [--picture docs/images/marques.png]

How much faster than one machine is training with only the convolutions distributed, by the size of
the network, the bandwidth of links, the size of batches, and the number and kind of machines? Reads
`results/split_networks.json` and measures nothing itself.

Source: J. Marques, G. Falcao and L. A. Alexandre, "Distributed learning of CNNs on heterogeneous
CPU/GPU architectures", Applied Artificial Intelligence 32 (9-10), 2018, section 5.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from common import RESULTS, write

SIZES = ("50:500", "150:800", "300:1000", "500:1500")
EQUAL, UNEQUAL = "0.4+0.4+0.4+0.4", "0.4+0.4+0.2+0.2"
FAST, SLOW = "1Gbit/s", "100Mbit/s"


def case(size: str, batch: int = 16, cores: str = EQUAL, bandwidth: str = FAST) -> str:
    """As `split_networks.py` calls it."""
    return f"marques:{size} {batch} {cores} {bandwidth}"


QUESTIONS: dict[str, list[tuple[str, str, int]]] = {
    "size of the network (4 machines)": [(size, case(size), 4) for size in SIZES],
    "bandwidth (4 machines)": [
        (f"{size}, {bandwidth}", case(size, bandwidth=bandwidth), 4)
        for size in ("50:500", "150:800", "500:1500")
        for bandwidth in (FAST, SLOW)
    ],
    "size of batches (150:800, 4 machines)": [
        (f"{batch} images", case("150:800", batch), 4) for batch in (16, 64)
    ],
    "number and kind of machines": [
        *(
            (f"{size}, {count} alike", case(size), count)
            for size in ("150:800", "500:1500")
            for count in (2, 3, 4)
        ),
        *((f"{size}, 2 + 2 half as fast", case(size, cores=UNEQUAL), 4)
          for size in ("150:800", "500:1500")),
    ],
}  # fmt: skip
"""By question: a label, the case and the number of machines."""


def answers(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each bar of the picture."""
    rows = []
    for question, bars in QUESTIONS.items():
        for label, name, count in bars:
            found = [
                row
                for row in measured
                if (row["case"], row["machines"], row["way"]) == (name, count, "filter")
            ]
            alone = [row for row in measured if (row["case"], row["way"]) == (name, "single")]
            if not found or not alone:
                continue
            cores = [float(part) for part in name.split()[2].split("+")]
            speed_up = alone[0]["step ms"] / found[0]["step ms"]
            rows.append(
                {
                    "question": question,
                    "what": label,
                    "one machine, ms": alone[0]["step ms"],
                    "filter, ms": found[0]["step ms"],
                    "speed-up": speed_up,
                    "predicted": alone[0]["predicted ms"] / found[0]["predicted ms"],
                    "of the sum of speeds": speed_up / (sum(cores[:count]) / cores[0]),
                }
            )
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel for each question."""
    heights = [sum(row["question"] == question for row in rows) for question in QUESTIONS]
    figure = Figure(figsize=(8, 0.8 * len(QUESTIONS) + 0.28 * sum(heights)), layout="constrained")
    panels = figure.subplots(
        len(QUESTIONS), 1, sharex=True, height_ratios=[height + 1 for height in heights]
    )
    for axes, question in zip(panels, QUESTIONS, strict=True):
        found = [row for row in rows if row["question"] == question]
        places = range(len(found))
        axes.barh(
            places, [r["speed-up"] for r in found], height=0.6, color="#4477aa", label="measured"
        )
        axes.plot(
            [r["predicted"] for r in found],
            places,
            "|",
            color="k",
            markersize=11,
            label="predicted",
        )
        axes.axvline(1, color="#999999", linewidth=0.8)
        axes.set_yticks(places, [r["what"] for r in found], fontsize=8)
        axes.invert_yaxis()
        axes.set_title(question, fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("times as fast as one machine")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Write the table, and the picture if one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path, help="draw the answers there")
    options = parser.parse_args()
    measured = json.loads((RESULTS / "split_networks.json").read_text())["rows"]
    rows = answers(measured)
    write("marques", rows, about="Speed-up by distributing only convolutions, by question.")
    if options.picture:
        draw(rows, options.picture)


if __name__ == "__main__":
    main()
