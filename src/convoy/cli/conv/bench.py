"""`convoy conv bench`."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated

from rich.table import Table
from typer import Option

from convoy.api.convolutions import bench_convolutions, compare_over_sizes
from convoy.cli.console import console, plain, print_json, stdout_for
from convoy.cli.values import image_shape, names_in
from convoy.errors import UsageError
from convoy.kernels.bench import SHAPE_FORM, Found, Row, sizes
from convoy.kernels.compare import KINDS, Compared
from convoy.kernels.timing import TIMED
from convoy.report.convolutions import draw_convolutions, draw_sizes
from convoy.runtime.memory import keep_freed_memory

SIZES = (28, 64, 128, 256)


def bench(
    network: Annotated[
        str | None, Option(help="A network's name, or package.module:function; cifar10-full.")
    ] = None,
    shape: Annotated[
        list[str] | None, Option(help="In place of a network; again for more.", metavar=SHAPE_FORM)
    ] = None,
    input: Annotated[
        str | None, Option(help="Image shape; the published one without it.", metavar="CxHxW")
    ] = None,
    layers: Annotated[str, Option(help="Which of the network's, with * and ?.")] = "*",
    batch_size: Annotated[int, Option(help="Images.")] = 16,
    threads: Annotated[
        str | None, Option(help="Numbers of them: 1,2; without it 1 and all cores.")
    ] = None,
    algorithms: Annotated[str, Option(help="Which, with commas between.")] = ",".join(TIMED),
    precision: Annotated[str, Option(help="fp32 or fp64.")] = "fp32",
    seconds: Annotated[float, Option(help="Of turns of each pass by each algorithm.")] = 0.3,
    image_sizes: Annotated[
        str | None,
        Option(help="Instead: layers or networks over sizes of square images, as 28,64,128,256."),
    ] = None,
    compare: Annotated[
        str | None, Option(help="With --image-sizes: which layers, of dense,conv.")
    ] = None,
    networks: Annotated[
        str | None, Option(help="With --image-sizes: which networks, as chavan:5-50-100-10,lenet.")
    ] = None,
    channels: Annotated[int, Option(help="With --image-sizes: of an image.")] = 3,
    out: Annotated[Path | None, Option(help="A picture as PNG: bars by layer, threads.")] = None,
    json: Annotated[bool, Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Time a network's convolutions by each algorithm: output, and both gradients."""
    output = console(as_json=json)
    over_sizes = image_sizes is not None or compare is not None or networks is not None
    _refuse(
        {
            "--algorithms": algorithms != ",".join(TIMED),
            "--precision": precision != "fp32",
            "--layers": layers != "*",
            "--input": input is not None,
        },
        "--image-sizes, --compare and --networks" if over_sizes else None,
    )
    _refuse({"--layers": layers != "*", "--input": input is not None}, "--shape" if shape else None)
    _refuse({"--channels": channels != 3}, None if over_sizes else "layers one by one")
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"--out {out}: {out.parent} is no folder; name one that is there")
    keep_freed_memory()  # as a rank of a run does
    if over_sizes:
        if network is not None or shape:
            raise UsageError(
                "--image-sizes times layers or networks over sizes, --network and --shape one by "
                "one: expected one of them"
            )
        if compare is not None and networks is not None:
            raise UsageError("--compare and --networks: expected one of them")
        with stdout_for(as_json=json), output.status("starting") as status:
            rows = compare_over_sizes(
                names_in(networks) or names_in(compare) or KINDS,
                _numbers("--image-sizes", image_sizes) or SIZES,
                are_networks=networks is not None,
                channels=channels,
                batch_size=batch_size,
                threads=_numbers("--threads", threads),
                seconds=seconds,
                say=lambda text: status.update(f"timing {plain(text)}"),
            )
        if json:
            print_json({"batch_size": batch_size, "sizes": [row.to_dict() for row in rows]})
        else:
            output.print(_over_sizes(rows, batch_size))
        if out is not None:
            draw_sizes([row.to_dict() for row in rows], out)
            output.print(f"drawn in {plain(str(out))}")
        return
    with stdout_for(as_json=json), output.status("starting") as status:
        found = bench_convolutions(
            network,
            shapes=shape or (),
            input_shape=image_shape("--input", input),
            layers=layers,
            batch_size=batch_size,
            threads=_numbers("--threads", threads),
            algorithms=names_in(algorithms) or TIMED,
            precision=precision,
            seconds=seconds,
            say=lambda text: status.update(plain(text)),
        )
    if json:
        print_json(found.to_dict())
    else:
        output.print(_shapes(found))
        for layer, number in product(found.geometries, found.peaks):
            output.print(_times(found, layer, number))
    if out is not None:
        draw_convolutions(found.to_dict(), out)
        output.print(f"drawn in {plain(str(out))}")


def _refuse(given: dict[str, bool], beside: str | None) -> None:
    """Options that would do nothing beside what was asked for."""
    for option, is_given in given.items():
        if beside is not None and is_given:
            raise UsageError(f"{option} has no meaning for {beside}: leave it out")


def _over_sizes(rows: list[Compared], images: int) -> Table:
    table = Table(title=f"{images} images", header_style="bold")
    for name in ("what", "device"):
        table.add_column(name)
    for name in ("threads", "image size", "forward ms", "backward ms"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            plain(row.what),
            row.device,
            f"{row.threads}",
            f"{row.image_size}",
            f"{row.forward_s * 1e3:.2f}",
            f"{row.backward_s * 1e3:.2f}",
        )
    return table


def _numbers(option: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text}: expected whole numbers, as 1,2") from None


def _shapes(found: Found) -> Table:
    table = Table(title=f"{found.images} images, in elements", header_style="bold")
    table.add_column("layer")
    for name in ("kernel", "input", "lowered", "weight", "output", "GFLOP"):
        table.add_column(name, justify="right")
    for layer, geometry in found.geometries.items():
        row = sizes(geometry)
        table.add_row(
            plain(layer),
            "x".join(map(str, row["kernel"])),
            *(f"{row[name]:,}" for name in ("input", "lowered", "weight", "output")),
            f"{row['flops'] / 1e9:.2f}",
        )
    return table


def _times(found: Found, layer: str, threads: int) -> Table:
    """One layer's: together they would be wider than a terminal."""
    peak = found.peaks[threads] / 1e9
    table = Table(
        title=f"{plain(layer)}, {threads} thread{'s' * (threads > 1)}; "
        f"matrix product {peak:,.0f} GFLOP/s",
        header_style="bold",
    )
    for name in ("pass", "algorithm"):
        table.add_column(name, no_wrap=True)
    for name in ("ms", "GFLOP/s", "of peak", "vs lowering", "vs torch"):
        table.add_column(name, justify="right")
    last = None
    for row in found.rows:
        if (row.threads, row.layer) == (threads, layer):
            table.add_row(row.what if row.what != last else "", *_cells(row))
            last = row.what
    return table


def _cells(row: Row) -> list[str]:
    return [
        row.algorithm,
        f"{row.seconds * 1e3:.2f}",
        f"{row.gflops:,.1f}",
        f"{row.of_peak:.0%}",
        *("" if ratio is None else f"{ratio:.2f}x" for ratio in (row.vs_lowering, row.vs_library)),
    ]
