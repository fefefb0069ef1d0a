"""A server in a thread of the tests' process, and how tests ask it."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from convoy.split.messages import Address, request
from convoy.split.server.core import Limits
from convoy.split.server.logs import Log
from convoy.split.server.security import SecurityOptions
from convoy.split.server.serving import Addresses, Options, Server

PATIENCE_S = 60
QUICK = Limits(batch_window_s=0)


@dataclass
class Running:
    """A server that runs."""

    server: Server
    addresses: Addresses
    loop: asyncio.AbstractEventLoop
    lines: io.StringIO

    def logged(self) -> list[dict[str, Any]]:
        """What it has logged."""
        return [json.loads(line) for line in self.lines.getvalue().splitlines()]

    def metrics(self) -> str:
        """What it has counted."""
        return self.server.metrics.text().decode()

    def in_loop(self, what: Callable[[], Any]) -> Any:
        """What `what` returns, or the coroutine that it makes does, in the server's loop."""

        async def run() -> Any:
            found = what()
            return await found if asyncio.iscoroutine(found) else found

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(PATIENCE_S)

    def gate(self, model: str = "full") -> Gate:
        """Hold the computing of a model back."""
        (batcher,) = [
            self.server.core.batchers[id(m)]
            for m in self.server.core.repository
            if m.name == model and m.version == 2
        ]
        gate = Gate(run=batcher.run)
        batcher.run = gate
        return gate


@dataclass
class Gate:
    """Computes once it is opened."""

    run: Callable[[Any], Any]
    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)
    batches: list[int] = field(default_factory=list)

    def __call__(self, rows: Any) -> Any:
        self.batches.append(len(rows))
        self.reached.set()
        assert self.opened.wait(PATIENCE_S)
        return self.run(rows)


@contextmanager
def running(
    folder: Path, limits: Limits = QUICK, security: SecurityOptions | None = None, **options: Any
) -> Iterator[Running]:
    """A server on free ports, ended when the block ends."""
    lines = io.StringIO()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        settings = Options(
            **{"folders": (folder,), "port": 0, "http_port": 0, "threads": 2, **options},
            limits=limits,
            security=security or SecurityOptions(),
        )
        server = Server(settings, Log("debug", lines))
        starting = asyncio.run_coroutine_threadsafe(server.start(), loop)
        addresses = starting.result(PATIENCE_S)
        try:
            yield Running(server, addresses, loop, lines)
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result(PATIENCE_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()


@contextmanager
def stub(
    address: str, credentials: Any = None
) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    """A gRPC client."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    channel = (
        grpc.insecure_channel(address, options)
        if credentials is None
        else grpc.secure_channel(address, credentials, options)
    )
    with channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def infer(address: str, message: pb.ModelInferRequest, **how: Any) -> Any:
    """A gRPC request's answer, on a connection of its own."""
    with stub(address, how.pop("credentials", None)) as asked:
        return asked.ModelInfer(message, timeout=PATIENCE_S, **how)


def refused(call: Callable[[], Any]) -> tuple[str, str]:
    """The status and text of a gRPC refusal."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name, error.details()
    raise AssertionError("it was answered")


def plain(rows: Any, model: str = "full", name: str = "input") -> pb.ModelInferRequest:
    """A request with a float32 tensor, for the newest version."""
    to = Address(model=model, version=2, sha256="", input=name)
    array = np.asarray(rows, np.float32)
    message = request(to, "float32", array.tobytes(), array.shape)
    del message.parameters["sha256"]
    message.model_version = ""
    return message


def rows_of(answer: pb.ModelInferResponse) -> Any:
    """An answer's numbers."""
    return np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(
        tuple(answer.outputs[0].shape)
    )


def call(
    address: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    context: ssl.SSLContext | None = None,
    method: str = "",
) -> tuple[int, dict[str, str], bytes]:
    """An HTTP request: status, headers and body of its answer. JSON is made of what is no bytes."""
    kind = http.client.HTTPConnection if context is None else http.client.HTTPSConnection
    more = {} if context is None else {"context": context}
    connection = kind(address, timeout=PATIENCE_S, **more)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        method = method or ("GET" if data is None else "POST")
        connection.request(method, path, data, headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def document(rows: Any, name: str = "input", **more: Any) -> dict[str, Any]:
    """A request's JSON with a tensor of numbers."""
    array = np.asarray(rows, np.float32)
    tensor = {
        "name": name,
        "datatype": "FP32",
        "shape": list(array.shape),
        "data": array.reshape(-1).tolist(),
    }
    return {"inputs": [tensor], **more}


def until(condition: Any) -> None:
    """Wait, without sleeping for longer than others need the processor."""
    waiting = threading.Event()
    for _ in range(PATIENCE_S * 100):
        if condition():
            return
        waiting.wait(0.01)
    raise AssertionError("it did not come about")
