"""A server's life: loaded, listening, ready, draining, ended."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from aiohttp import web

from convoy.errors import ServerError, UsageError
from convoy.quotas import usable_cores
from convoy.split.server import grpc_front, repository
from convoy.split.server.core import Core, Limits
from convoy.split.server.http_front import HttpFront
from convoy.split.server.logs import LibraryLines, Log
from convoy.split.server.metrics import Metrics
from convoy.split.server.security import SecurityOptions, addresses_of, prepare

LEAST_MESSAGE_BYTES = 1024
LAST_WORDS_S = 0.5
"""For connections to close, once everything has been answered or given up."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is served, where, to whom and how much."""

    folders: tuple[Path, ...]
    """That `convoy split export` wrote."""
    host: str = "127.0.0.1"
    port: int = 8001
    """gRPC's; 0 for any that is free."""
    http_port: int = 8000
    """HTTP's; 0 for any that is free."""
    security: SecurityOptions = field(default_factory=SecurityOptions)
    limits: Limits = field(default_factory=Limits)
    threads: int | None = None
    """That decode, and that one run of a model uses; as many as there are cores without it."""
    drain_s: float = 10.0
    """For requests that are here when the server is told to end."""
    log_level: str = "info"

    def __post_init__(self) -> None:
        limits = self.limits
        for name, value, least in (
            ("--max-message", limits.message_bytes, LEAST_MESSAGE_BYTES),
            ("--max-batch", limits.max_batch, 1),
            ("--max-concurrent", limits.max_concurrent, 1),
            ("--threads", 1 if self.threads is None else self.threads, 1),
            ("--batch-window", limits.batch_window_s, 0),
            ("--drain", self.drain_s, 0),
        ):
            if value < least:
                raise UsageError(f"{name} is {value:g}; expected {least} or more")
        if limits.message_bytes >= 1 << 31:
            raise UsageError("--max-message: gRPC has no messages of 2 GiB; expected less")


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where a server listens, as host:port."""

    grpc: str
    http: str


class Server:
    """A server within this process, in an event loop of its caller's."""

    def __init__(self, options: Options, log: Log | None = None) -> None:
        self.options = options
        self.log = log or Log(options.log_level)
        self.metrics = Metrics()
        self._pool: ThreadPoolExecutor | None = None
        self._grpc: Any = None
        self._http: web.AppRunner | None = None
        self.core: Core

    async def start(self) -> Addresses:
        """Load the models, listen, and take requests.

        Raises:
            ConvoyError: a folder, file, host or port that cannot be used.
        """
        options = self.options
        security = prepare(options.security, options.host, self.log)
        threads = options.threads or cores()
        models = repository.load(*options.folders, threads=threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="convoy-split")
        self.core = Core(models, security, options.limits, self._pool, self.log, self.metrics)
        try:
            host = addresses_of(options.host)[0]
            http = await self._listen_http(host)
            addresses = Addresses(grpc=await self._listen_grpc(host), http=http)
        except BaseException:
            await self._close(0)
            raise
        self.core.set_ready(True)
        self.log(
            "info",
            "ready",
            grpc=addresses.grpc,
            http=addresses.http,
            models=[f"{m.name}/{m.version}" for m in models],
            tls=security.context is not None,
            token=security.token is not None,
        )
        return addresses

    async def stop(self) -> int:
        """Refuse what comes, answer what is here within `drain_s`, end; how many were not answered.

        Threads that compute an unanswered request go on until they are done.
        """
        self.core.set_ready(False)
        self.log("info", "draining", in_flight=self.core.in_flight)
        try:
            async with asyncio.timeout(max(self.options.drain_s - LAST_WORDS_S, 0)):
                await self.core.idle()
        except TimeoutError:
            pass
        unanswered = self.core.in_flight
        self.core.abandon()
        await self._close(LAST_WORDS_S)
        self.log("warning" if unanswered else "info", "ended", unanswered=unanswered)
        return unanswered

    async def _listen_http(self, host: str) -> str:
        front = HttpFront(self.core, self.metrics)
        # auto_decompress: what unpacks is not bounded; the front refuses what is packed.
        self._http = web.AppRunner(
            front.application(),
            access_log=None,
            auto_decompress=False,
            shutdown_timeout=LAST_WORDS_S,
        )
        await self._http.setup()
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listening = socket.create_server(
                (host, self.options.http_port), family=family, backlog=128, reuse_port=False
            )
        except (OSError, OverflowError) as error:
            raise self._no_port("--http-port", self.options.http_port, error) from None
        await web.SockSite(self._http, listening, ssl_context=self.core.security.context).start()
        return _joined(host, listening.getsockname()[1])

    async def _listen_grpc(self, host: str) -> str:
        limits, credentials = self.options.limits, self.core.security.credentials
        self._grpc = grpc.aio.server(
            options=grpc_front.options(limits.message_bytes, limits.max_concurrent),
            maximum_concurrent_rpcs=limits.max_concurrent + grpc_front.SPARE_STREAMS,
        )
        self._grpc.add_generic_rpc_handlers((grpc_front.GrpcFront(self.core).handlers(),))
        asked = _joined(host, self.options.port)
        try:
            if credentials is None:
                port = self._grpc.add_insecure_port(asked)
            else:
                port = self._grpc.add_secure_port(asked, credentials)
        except RuntimeError as error:
            raise self._no_port("--port", self.options.port, error) from None
        if not port:
            raise self._no_port("--port", self.options.port, "gRPC does not say why")
        await self._grpc.start()
        return _joined(host, port)

    def _no_port(self, option: str, port: int, why: object) -> ServerError:
        reason = why.strerror if isinstance(why, OSError) else str(why).splitlines()[0][:200]
        return ServerError(
            f"cannot listen on {self.options.host}, {option} {port}: {reason}. Expected a port "
            "that is free: give another, or 0 for any"
        )

    async def _close(self, grace_s: float) -> None:
        if self._grpc is not None:
            await self._grpc.stop(grace_s)
        if self._http is not None:
            await self._http.cleanup()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


async def serve(options: Options, announce: Any) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends the process at once.

    Args:
        announce: called with the server and its addresses once it is ready.

    Raises:
        ConvoyError: the server cannot start, or requests were not answered within `drain_s`.
    """
    server = Server(options)
    logging.captureWarnings(True)
    logging.getLogger().addHandler(LibraryLines(server.log))
    loop, told = asyncio.get_running_loop(), asyncio.Event()

    def tell(number: int) -> None:
        if told.is_set():
            end_now(128 + number)
        told.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, tell, number)
    announce(server, await server.start())
    await told.wait()
    unanswered = await server.stop()
    if unanswered:
        server.log("error", "not answered", requests=unanswered, drain_s=options.drain_s)
        end_now(1)


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, which turns in less time; Python's own where it is not to be had (on Windows)."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def end_now(status: int) -> None:
    """End this process without waiting for threads that compute."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def cores() -> int:
    """Those that this process may use, whole ones."""
    return max(1, int(usable_cores()))


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
