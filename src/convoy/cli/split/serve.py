"""`convoy split serve`: the cloud's side. Nothing here imports torch or Ray."""

from __future__ import annotations

import asyncio
import json as json_module
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from convoy.cluster import parse_duration
from convoy.errors import ServerError, UsageError

if TYPE_CHECKING:
    from convoy.split.server.serving import Addresses, Server

SIZES = {"": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}
SIZES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
LEVELS = ("debug", "info", "warning", "error")
File = Path | None


def serve(
    folders: Annotated[
        list[Path], Argument(metavar="DIR...", help="What `convoy split export` wrote.")
    ],
    host: Annotated[str, Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Option(help="gRPC's port; 0 for any.", min=0, max=65535)] = 8001,
    http_port: Annotated[int, Option(help="HTTP's port; 0 for any.", min=0, max=65535)] = 8000,
    tls_cert: Annotated[File, Option(help="The server's certificate, PEM.")] = None,
    tls_key: Annotated[File, Option(help="Its key, PEM.")] = None,
    client_ca: Annotated[
        File, Option(help="Clients need a certificate of this authority, PEM.")
    ] = None,
    token_file: Annotated[File, Option(help="Clients need the token in this file.")] = None,
    insecure: Annotated[
        bool, Option("--insecure", help="Listen beyond this machine without TLS or a token.")
    ] = False,
    max_message: Annotated[str, Option(help="Largest request.")] = "64MB",
    max_batch: Annotated[int, Option(help="Images computed together.", min=1)] = 64,
    batch_window: Annotated[
        str, Option(help="How long a request waits for others to be computed with.")
    ] = "0ms",
    max_concurrent: Annotated[
        int, Option(help="Requests at a time; more are refused.", min=1)
    ] = 64,
    threads: Annotated[
        int | None, Option(help="Threads of the network; all cores without it.", min=1)
    ] = None,
    drain: Annotated[str, Option(help="How long requests may end in, once told to end.")] = "10s",
    log_level: Annotated[str, Option(help="debug, info, warning or error.")] = "info",
    quiet: Annotated[bool, Option("--quiet", help="Log only what is wrong.")] = False,
) -> None:
    """Serve exported models over the Open Inference Protocol, version 2: gRPC and HTTP.

    Prints one line of JSON once it is ready, and logs JSON lines on stderr.
    """
    serving, core, security = _server()
    if log_level not in LEVELS:
        raise UsageError(f"--log-level {log_level}: expected one of {', '.join(LEVELS)}")
    options = serving.Options(
        folders=tuple(folders),
        host=host,
        port=port,
        http_port=http_port,
        security=security.SecurityOptions(
            tls_cert=tls_cert,
            tls_key=tls_key,
            client_ca=client_ca,
            token_file=token_file,
            insecure=insecure,
        ),
        limits=core.Limits(
            message_bytes=parse_size("--max-message", max_message),
            max_batch=max_batch,
            batch_window_s=_seconds("--batch-window", batch_window),
            max_concurrent=max_concurrent,
        ),
        threads=threads,
        drain_s=_seconds("--drain", drain),
        log_level="warning" if quiet else log_level,
    )
    with asyncio.Runner(loop_factory=serving.new_loop) as runner:
        runner.run(serving.serve(options, _announce))


def _announce(server: Server, addresses: Addresses) -> None:
    models = [
        {"name": model.name, "version": model.version, "sha256": model.sha256}
        for model in server.core.repository
    ]
    document = {"grpc": addresses.grpc, "http": addresses.http, "models": models}
    sys.stdout.write(json_module.dumps(document) + "\n")
    sys.stdout.flush()


def _server() -> tuple[Any, Any, Any]:
    """The server's code, which stands on optional packages. Raises ServerError."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # or it writes lines of its own on stderr
    try:
        from convoy.split.server import core, security, serving
    except ModuleNotFoundError as error:
        raise ServerError(f"serving needs {error.name}: pip install 'convoy-cnn[serve]'") from None
    return serving, core, security


def parse_size(option: str, text: str) -> int:
    """Bytes of "64MB"; UsageError, by the option's name, if it is no size."""
    found = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([kKMG]?i?B?)\s*", text)
    if found is None or found[2] not in SIZES:
        raise UsageError(f"{option} {text}: expected bytes with a unit, as 64MB or 512KiB")
    return int(float(found[1]) * SIZES[found[2]])


def _seconds(option: str, text: str) -> float:
    if text.strip() == "0":
        return 0.0
    try:
        return parse_duration(text)
    except UsageError as error:
        raise UsageError(f"{option}: {error}") from None
