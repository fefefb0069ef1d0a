"""`convoy.split_privacy`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from convoy.api.requests import thing_of
from convoy.datasets import open_dataset
from convoy.errors import UsageError
from convoy.runtime.json_lines import finite
from convoy.runtime.run_folder import write_text
from convoy.split.manifest import load


def privacy(
    folder: str | Path,
    *,
    ways: Sequence[str] | None = None,
    dataset: Any = None,
    data_dir: str | Path | None = None,
    images: int = 5000,
    epochs: int = 8,
    out: str | Path | None = None,
    watch: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """How much of a picture can be seen in what an exported folder's ways send.

    Writes privacy.json and privacy.png, and returns what is in the former.

    Args:
        folder: what `convoy split export` made.
        ways: as `pool2/uint8`; all that send something without it.
        dataset: pictures of the kind that it was trained on; by default the very data set.
        data_dir: where its files lie.
        images: training pictures that a decoder learns from.
        epochs: how often it sees them.
        out: where to write; FOLDER-privacy without it.
        watch: is told which way comes next.

    Raises:
        ManifestError, UsageError: the folder, the data set or a way will not do.
    """
    from convoy.report.contact_sheet import draw_contact_sheet  # matplotlib takes its time
    from convoy.split.privacy.judging import judge

    folder = Path(folder)
    named = load(folder).dataset
    if dataset is None and not named:
        raise UsageError(f"{folder} does not say what it was trained on: give a data set (--data)")
    data = open_dataset(
        thing_of(dataset, named, "dataset"), data_dir=Path(data_dir) if data_dir else None
    )
    shown, found, counts = judge(folder, data, ways, images=images, epochs=epochs, watch=watch)
    target = Path(out) if out else folder.with_name(f"{folder.name}-privacy")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {target} cannot be made: {error.strerror}") from None
    labels = [f"{seen.way}   SSIM {seen.ssim:.2f}" for seen in found]
    rows = [("original", shown), *zip(labels, (seen.shown for seen in found), strict=True)]
    picture = target / "privacy.png"
    draw_contact_sheet(rows, picture)
    document: dict[str, Any] = {
        "folder": str(folder),
        "dataset": data.name,
        "learnt_from": counts[0],
        "judged_on": counts[1],
        "epochs": epochs,
        "picture": str(picture),
        "ways": [
            {key: value for key, value in vars(seen).items() if key != "shown"} for seen in found
        ],
    }
    write_text(target / "privacy.json", json.dumps(finite(document), indent=1) + "\n")
    finished: dict[str, Any] = finite(document)
    return finished
