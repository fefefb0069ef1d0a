"""`convoy split privacy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.table import Table
from typer import Argument, Option

from convoy.cli.console import console, plain, print_json, stdout_for


def privacy(
    folder: Annotated[Path, Argument(help="What `convoy split export` made.")],
    way: Annotated[
        list[str] | None, Option(help="A way, as pool2/uint8; several times. All without it.")
    ] = None,
    data: Annotated[
        str | None, Option(help="The data set; the one that was exported with without it.")
    ] = None,
    data_dir: Annotated[Path | None, Option(help="Where its files lie.")] = None,
    images: Annotated[
        int, Option(help="Training pictures that a decoder learns from.", min=16)
    ] = 5000,
    epochs: Annotated[int, Option(help="How often it sees them.", min=1)] = 8,
    out: Annotated[
        Path | None, Option(help="For the figures and the contact sheet; DIR-privacy without it.")
    ] = None,
    json: Annotated[bool, Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """How much of a picture can be seen in what is sent.

    Trains a decoder for every way, and compares what it makes of held-out pictures with them.
    """
    from convoy.api.privacy import privacy as judged

    output = console(as_json=json)
    with stdout_for(as_json=json), output.status("reading") as status:
        found = judged(
            folder,
            ways=way,
            dataset=data,
            data_dir=data_dir,
            images=images,
            epochs=epochs,
            out=out,
            watch=lambda name: status.update(f"a decoder for {plain(name)}"),
        )
    if json:
        print_json(found)
        return
    table = Table(header_style="bold", title=f"seen in what {plain(str(folder))} sends")
    for column in ("way", "bytes an image", "accuracy", "SSIM", "PSNR, dB"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for row in found["ways"]:
        accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.2%}"
        decibels = "exact" if row["psnr_db"] is None else f"{row['psnr_db']:.1f}"
        size = f"{row['bytes_per_image']:,.0f}"
        table.add_row(plain(row["way"]), size, accuracy, f"{row['ssim']:.3f}", decibels)
    output.print(table)
    output.print(f"SSIM 1 is the picture itself. Contact sheet: {plain(found['picture'])}")
