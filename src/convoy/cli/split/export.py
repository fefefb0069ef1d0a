"""`convoy split export`."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from typer import Argument, Option

from convoy.cli.console import console, plain, print_json, stdout_for


def export(
    run: Annotated[Path, Argument(help="The run folder of a finished run, or an ONNX file.")],
    cut: Annotated[
        str, Option(help="Layers after which to cut: pool2,norm2; pool2:8 is with 8 filters there.")
    ],
    out: Annotated[Path, Option(help="A new folder.")],
    data: Annotated[
        str | None,
        Option(help="Another data set to calibrate and judge on; the run's own without it."),
    ] = None,
    data_dir: Annotated[Path | None, Option(help="Where data files lie.")] = None,
    accuracy: Annotated[bool, Option(help="Judge every codec on test images.")] = True,
    images: Annotated[
        int | None, Option(help="Test images to judge by; all without it.", min=1)
    ] = None,
    model_version: Annotated[
        int,
        Option(help="Of the models; a server takes several folders.", min=1),
    ] = 1,
    json: Annotated[bool, Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Write a trained network as ONNX, whole and in halves, for an edge client and a server."""
    from convoy.api.splitting import export_split  # stands on torch and onnx
    from convoy.split.manifest import to_json

    output = console(as_json=json)
    with stdout_for(as_json=json), output.status("reading") as status:
        manifest = export_split(
            run,
            [name.strip() for name in cut.split(",") if name.strip()],
            out,
            dataset=data,
            data_dir=data_dir,
            accuracy=accuracy,
            images=images,
            version=model_version,
            say=lambda text: status.update(plain(text)),
        )
    if json:
        print_json(json_format.loads(to_json(manifest)))
        return
    for table in _tables(manifest):
        output.print(table)
    counted = manifest.calibration_images
    if counted:
        output.print(f"ranges of channels are those of {counted} training images")
    output.print(
        f"{plain(str(out))} is written: serve it with convoy split serve, send to it with "
        "convoy split run"
    )


def _tables(manifest: Any) -> list[Table]:
    found = []
    for variant in manifest.variants:
        table = Table(title=plain(variant.network), header_style="bold")
        table.add_column("sent", no_wrap=True)
        table.add_column("as", no_wrap=True)
        table.add_column("bytes an image", justify="right")
        table.add_column("accuracy", justify="right")
        rows = [("the picture", codec) for codec in variant.codecs]
        rows += [(entry.cut, codec) for entry in variant.cuts for codec in entry.codecs]
        for sent, codec in rows:
            accuracy = "" if codec.accuracy is None else f"{codec.accuracy:.2%}"
            table.add_row(plain(sent), codec.name, f"{codec.bytes_per_image:,.0f}", accuracy)
        found.append(table)
    return found
