"""`convoy layers`."""

from __future__ import annotations

from typing import Annotated

from rich.table import Table
from typer import Argument, Option

from convoy import api
from convoy.cli.console import console, plain, print_json
from convoy.cli.values import image_shape
from convoy.cost.layers import LayerFacts, totals_of


def layers(
    network: Annotated[str, Argument(help="A network's name, or package.module:function.")],
    input: Annotated[
        str | None,
        Option(help="Image shape, as 3x224x224; the published one without it.", metavar="CxHxW"),
    ] = None,
    classes: Annotated[int | None, Option(help="Number of classes, likewise.")] = None,
    json: Annotated[bool, Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """What each layer of a network holds and computes for one image."""
    found = api.layers(network, input_shape=image_shape("--input", input), num_classes=classes)
    if json:
        print_json(found.to_dict())
        return
    shape = "x".join(map(str, found.input))
    table = Table(
        title=f"{plain(found.network)}, one image of {shape}", header_style="bold", show_footer=True
    )
    totals = totals_of(found.layers)
    table.add_column("layer", "in all")
    table.add_column("type")
    table.add_column("kernel")
    for name, total in (
        ("input", None),
        ("lowered", None),
        ("weight", totals["weight"]),
        ("output", None),
        ("multiply-adds", totals["macs"]),
        ("backward", totals["backward_macs"]),
        ("parameters B", totals["parameter_bytes"]),
        ("activations B", totals["activation_bytes"]),
    ):
        table.add_column(name, "" if total is None else f"{total:,}", justify="right")
    for layer in found.layers:
        table.add_row(plain(layer.name), layer.type, *_cells(layer))
    console(as_json=False).print(table)


def _cells(layer: LayerFacts) -> list[str]:
    counts = (
        *(layer.input, layer.lowered, layer.weight, layer.output, layer.macs),
        *(layer.backward_macs, layer.parameter_bytes, layer.activation_bytes),
    )
    kernel = "x".join(map(str, layer.kernel)) if layer.kernel else ""
    return [kernel, *(f"{count:,}" if count else "" for count in counts)]
