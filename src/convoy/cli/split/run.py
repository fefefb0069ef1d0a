"""`convoy split run`: the edge client."""

from __future__ import annotations

import asyncio
import contextlib
import json as jsonlib
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from typer import Argument, Exit, Option

from convoy.errors import UsageError
from convoy.runtime.json_lines import finite

if TYPE_CHECKING:
    from convoy.split.client import AsyncClient

DRAWN_S = 0.2
SHOWN = 5
"""Of the latest notices."""


def run(
    folder: Annotated[Path, Argument(help="What `convoy split export` made.")],
    server: Annotated[
        str | None,
        Option(help="grpcs://HOST:PORT (grpc:// without TLS). Without one the edge does all."),
    ] = None,
    source: Annotated[
        str,
        Option(
            help="folder:PATH, video:PATH, camera[:DEVICE], or - for standard input: JPEGs one "
            "after another, or paths line by line."
        ),
    ] = "-",
    objective: Annotated[
        str, Option(help="What to choose by: latency, throughput, bytes, privacy.")
    ] = "throughput",
    accuracy_within: Annotated[
        float, Option(help="Points of accuracy that a way may lose.", min=0)
    ] = 1.0,
    rate: Annotated[
        float, Option(help="Images per second that the way has to keep up with.", min=0)
    ] = 0.0,
    batch_size: Annotated[int, Option(help="Images that travel together.", min=1)] = 1,
    linger: Annotated[
        float, Option(help="Milliseconds that an incomplete batch waits for more.", min=0)
    ] = 50.0,
    deadline: Annotated[
        float, Option(help="Seconds until the edge computes what is not back.", min=0.001)
    ] = 0.4,
    way: Annotated[
        str | None, Option(help="Use this way only, as pool2/uint8, edge or picture/jpeg.")
    ] = None,
    fallback: Annotated[bool, Option(help="Have the edge compute what the cloud does not.")] = True,
    threads: Annotated[int, Option(help="Threads that the edge computes with.", min=1)] = 1,
    ca: Annotated[Path | None, Option(help="Who has signed the server's certificate.")] = None,
    cert: Annotated[Path | None, Option(help="The client's certificate, with --key.")] = None,
    key: Annotated[Path | None, Option(help="Its key.")] = None,
    token_file: Annotated[Path | None, Option(help="The server's token, in a file.")] = None,
    insecure: Annotated[
        bool, Option("--insecure", help="Let a token travel in plain text.")
    ] = False,
    out: Annotated[Path | None, Option(help="Results as JSON lines; stdout without it.")] = None,
    summary: Annotated[Path | None, Option(help="The closing summary, as JSON.")] = None,
    quiet: Annotated[
        bool, Option("--quiet", help="Only what is wrong on stderr: no progress, no summary.")
    ] = False,
) -> None:
    """Classify pictures: on the edge, in the cloud, or between them, whichever is best just now.

    A line of JSON for each picture, in order; progress and a closing summary on stderr.
    """
    try:
        from convoy.split.client import AsyncClient, Options
        from convoy.split.client.sources import open_source
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the edge client needs {error.name}: pip install 'convoy-cnn[edge]'"
        ) from None
    options = Options(
        objective=objective,  # type: ignore[arg-type]  # looked at there
        accuracy_within=accuracy_within,
        rate=rate,
        batch_size=batch_size,
        linger_s=linger / 1000,
        deadline_s=deadline,
        way=way,
        fallback=fallback,
        threads=threads,
        ca=ca,
        cert=cert,
        key=key,
        token=_token(token_file),
        insecure=insecure,
    )
    pictures = open_source(source)
    client = AsyncClient(folder, server, options)
    number: int | None = None
    try:
        number = asyncio.run(_classify(client, pictures, out, quiet))
    finally:  # whatever ended it, unless it never began
        if summary is not None and (number is not None or client.summary.images):
            with _opened(summary) as file:
                file.write(jsonlib.dumps(finite(client.summary.as_json()), indent=1) + "\n")
    if number:
        raise Exit(128 + number)


async def _classify(client: AsyncClient, pictures: Any, out: Path | None, quiet: bool) -> int:
    """Results as they come; returns the signal that ended it, or 0.

    Ctrl-C and SIGTERM end it with what has come so far. A file of earlier results is not touched
    before it is certain that there will be others.
    """
    output = Console(stderr=True, highlight=False)
    this, told = asyncio.current_task(), 0
    assert this is not None

    def end(number: int) -> None:
        nonlocal told
        told = number
        this.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end, number)
    live = Live(console=output, refresh_per_second=5, transient=True)
    try:
        async with client:
            opened = contextlib.nullcontext(sys.stdout) if out is None else _opened(out)
            with opened as lines, contextlib.nullcontext() if quiet else live:
                await _print_results(client, pictures, lines, None if quiet else live)
    except BrokenPipeError:
        told = signal.SIGPIPE
    except asyncio.CancelledError:
        if not told:
            raise
    finally:
        if not quiet and client.summary.images:
            output.print(_table(client, "done"))
        for text in [*client.notices][-SHOWN:]:
            output.print(Text(text, style="yellow"))
    return told


async def _print_results(
    client: AsyncClient, pictures: Any, lines: TextIO, live: Live | None
) -> None:
    drawn = 0.0
    async with contextlib.aclosing(client.stream(pictures)) as results:
        async for result in results:
            lines.write(jsonlib.dumps(finite(result.as_json())) + "\n")
            lines.flush()
            now = time.monotonic()
            if live is not None and now > drawn + DRAWN_S:
                live.update(_table(client, "so far"))
                drawn = now


def _table(client: AsyncClient, title: str) -> Table:
    """What has been done."""
    summary, meter = client.summary, client.chooser.meter
    found = summary.as_json()
    table = Table(
        show_header=False, title=f"{summary.images:,} images {title}", title_justify="left"
    )
    table.add_row("images/s", f"{found['images_per_s'] or 0:,.1f}")
    if summary.latencies.total:
        shown = [f"{1000 * summary.latencies.quantile(part):.1f} ms" for part in (0.5, 0.99)]
        table.add_row("latency", f"median {shown[0]}, 99 % within {shown[1]}")
    computed = ", ".join(f"{way} {count:,}" for way, count in summary.by_way.most_common())
    table.add_row("computed", Text(computed))
    probes = f", {summary.probe_bytes:,} to measure the link" if summary.probe_bytes else ""
    table.add_row("sent", f"{summary.sent_bytes:,} bytes{probes}")
    if meter.bandwidth_bytes_s:
        rtt = f", round trip {1000 * (meter.rtt_s or 0):.1f} ms"
        table.add_row("link", f"{8e-6 * meter.bandwidth_bytes_s:.3g} Mbit/s{rtt}")
    if len(summary.switches) > 1:
        table.add_row("choices", Text(", ".join(way for _, way in [*summary.switches][-4:])))
    if summary.fallbacks or summary.errors:
        table.add_row(
            "trouble", f"{summary.fallbacks} by the edge instead, {summary.errors} errors"
        )
    return table


def _token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the token in {path}: {error}") from None
    if not token:
        raise UsageError(f"{path} is empty: expected the server's token")
    return token


def _opened(path: Path) -> Any:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
