"""A server in this process that answers right, late, wrong or not at all, as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from convoy.split import sessions
from convoy.split.codecs import feature_codec
from convoy.split.manifest import load
from convoy.split.messages import CODEC, COMPUTING_S, COUNT, DIGEST, PLAIN, SERVER_S
from convoy.split.pictures import picture_codec


@dataclass
class PlayedCloud(service_pb2_grpc.GRPCInferenceServiceServicer):
    """What it serves, and how it behaves."""

    folder: Path
    silent: bool = False
    """Whether requests stay without an answer."""
    refuses: grpc.StatusCode | None = None
    says: str = "because"
    token: str | None = None
    takes: tuple[str, ...] | None = None
    """Codecs that it takes; all without it."""
    baffled: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT
    """What it answers to others."""
    says_times: bool = True
    """Whether it says how long it was at work, as only Convoy's does."""
    delays: list[float] = field(default_factory=list)
    """How long each of the next inferences takes, in turn."""
    wrong_width: bool = False
    serial_s: float = 0.0
    """What each inference takes, one after another."""
    nan: bool = False
    asked: list[str] = field(default_factory=list)
    """Model and codec of all inferences."""
    port: int = 0

    def __post_init__(self) -> None:
        self._turn = asyncio.Lock()
        manifest = load(self.folder)
        self._models: dict[str, Any] = {}
        self._codecs: dict[tuple[str, str], Any] = {}
        for variant in manifest.variants:
            self._add(variant.model, variant.whole)
            for facts in variant.codecs:
                plain = facts.name == PLAIN
                self._codecs[variant.model, facts.name] = (
                    feature_codec(PLAIN, shape=manifest.input.shape)
                    if plain
                    else picture_codec(facts.name, manifest.preprocessing)
                )
            for entry in variant.cuts:
                self._add(entry.model, entry.cloud)
                for facts in entry.codecs:
                    self._codecs[entry.model, facts.name] = feature_codec(
                        facts.name, shape=entry.features.shape, low=entry.low, high=entry.high
                    )

    def _add(self, model: str, file: Any) -> None:
        session = sessions.load((self.folder / file.file).read_bytes(), model)
        self._models[model] = (session, file.sha256)

    async def _behave(self, context: Any) -> None:
        if self.silent:
            await asyncio.sleep(60)
        if self.refuses is not None:
            await context.abort(self.refuses, self.says)
        wanted = ("authorization", f"Bearer {self.token}")
        if self.token is not None and wanted not in context.invocation_metadata():
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token that is known here")

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.silent:
            await asyncio.sleep(60)
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._behave(context)
        return pb.ServerReadyResponse(ready=True)

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._behave(context)
        if request.model_name not in self._models:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.model_name!r}")
        session, digest = self._models[request.model_name]
        if request.parameters[DIGEST].string_param != digest:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another file is here")
        (tensor,), (raw,) = request.inputs, request.raw_input_contents
        name = tensor.parameters[CODEC].string_param or PLAIN
        count = tensor.parameters[COUNT].int64_param or tensor.shape[0]
        self.asked.append(f"{request.model_name}/{name}")
        if self.takes is not None and name not in self.takes:
            await context.abort(self.baffled, f"no codec {name}")
        payload = raw if name == PLAIN else raw[4:]
        rows = session(self._codecs[request.model_name, name].decode(payload, count))
        came = asyncio.get_running_loop().time()
        if self.delays:
            await asyncio.sleep(self.delays.pop(0))
        async with self._turn:
            await asyncio.sleep(self.serial_s)
        if self.nan:
            rows = rows * np.nan
        if self.wrong_width:
            rows = np.concatenate([rows, rows], 1)
        answer = pb.ModelInferResponse(model_name=request.model_name)
        answer.outputs.add(name="logits", datatype="FP32", shape=rows.shape)
        answer.raw_output_contents.append(rows.tobytes())
        if self.says_times:
            answer.parameters[SERVER_S].double_param = asyncio.get_running_loop().time() - came
            answer.parameters[COMPUTING_S].double_param = self.serial_s or 0.001
        return answer

    @asynccontextmanager
    async def up(self, credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[str]:
        """Listening, at the address that a client is told."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, server)
        address = f"localhost:{self.port}"
        if credentials is None:
            self.port = server.add_insecure_port(address)
        else:
            self.port = server.add_secure_port(address, credentials)
        await server.start()
        try:
            yield f"grpc{'s' if credentials else ''}://localhost:{self.port}"
        finally:
            await server.stop(0)
