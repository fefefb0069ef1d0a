"""The Open Inference Protocol over HTTP; `http_tensors` translates bodies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from convoy.split.messages import DIGEST
from convoy.split.server.core import Core, Visit
from convoy.split.server.http_tensors import HEADER_LENGTH, question_of, response_of
from convoy.split.server.metrics import Metrics
from convoy.split.server.refusals import RefusedError, Status, invalid, shown
from convoy.split.server.repository import Model
from convoy.split.server.requests import Question
from convoy.version import __version__

BODY_TIMEOUT_S = 60.0
"""For a body to come: until then it takes a place among those that are served at a time."""
EXTENSIONS = ["binary_tensor_data"]
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpFront:
    """Routes, and what answers them."""

    def __init__(self, core: Core, metrics: Metrics) -> None:
        self.core, self.metrics = core, metrics

    def application(self) -> web.Application:
        """What aiohttp runs."""
        size = self.core.limits.message_bytes
        application = web.Application(client_max_size=size, middlewares=[self._guarded])
        get, post = application.router.add_get, application.router.add_post
        get("/v2", self._server)
        get("/v2/health/live", self._live)
        get("/v2/health/ready", self._ready)
        get("/metrics", self._metrics)
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            get(model, self._model)
            get(f"{model}/ready", self._model_ready)
            post(f"{model}/infer", self._infer)
        return application

    @web.middleware
    async def _guarded(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Whatever goes wrong, as HTTP and {"error": ...} have it."""
        try:
            return await handler(request)
        except RefusedError as error:
            return _refused(error)
        except web.HTTPException as error:
            what = f"{request.method} {request.path[:100]}"
            known = "/v2, /v2/health/live, /v2/health/ready, /v2/models/NAME, /metrics"
            message = f"{what}: {error.reason}. Known: {known}, POST /v2/models/NAME/infer"
            headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            return _json({"error": message}, error.status, headers)
        except Exception as error:
            return _refused(self.core.unforeseen(error))

    async def _live(self, _request: web.Request) -> web.Response:
        return _json({"live": True})

    async def _ready(self, _request: web.Request) -> web.Response:
        is_ready = self.core.is_ready
        return _json({"ready": is_ready}, 200 if is_ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        self._check(request)
        return web.Response(body=self.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _server(self, request: web.Request) -> web.Response:
        self._check(request)
        return _json({"name": "convoy", "version": __version__, "extensions": EXTENSIONS})

    async def _model(self, request: web.Request) -> web.Response:
        model = self._found(request)
        tensors = {
            key: [{"name": spec.name, "datatype": "FP32", "shape": [-1, *spec.shape]}]
            for key, spec in (("inputs", model.input), ("outputs", model.output))
        }
        about = {
            "name": model.name,
            "versions": [str(v) for v in self.core.repository.versions(model.name)],
            "platform": "onnxruntime_onnx",
            **tensors,
            "parameters": {DIGEST: model.sha256, "codecs": ",".join(model.codecs)},
        }
        return _json(about)

    async def _model_ready(self, request: web.Request) -> web.Response:
        model = self._found(request)
        is_ready = self.core.is_ready
        return _json({"name": model.name, "ready": is_ready}, 200 if is_ready else 503)

    async def _infer(self, request: web.Request) -> web.Response:
        async def read(visit: Visit) -> Question:
            name, version = request.match_info["model"], request.match_info.get("version", "")
            head = _header_length(request)
            body = await self._body(request)
            visit.arrived, visit.received_bytes = perf_counter(), len(body)
            limit = self.core.limits.message_bytes
            return await self.core.off_loop(
                len(body), question_of, body, head, name, version, limit
            )

        body, headers = await self.core.serve(
            "http", request.remote or "", request.headers.get("Authorization"), read, response_of
        )
        return web.Response(body=body, headers=headers)

    async def _body(self, request: web.Request) -> bytes:
        """All of it. Raises RefusedError where it is too large, packed, or does not come."""
        most = self.core.limits.message_bytes
        too_large = RefusedError(
            Status.OUT_OF_RANGE,
            f"the request is larger than the {most} bytes of --max-message: send fewer images at a "
            "time",
        )
        packed = request.headers.get("Content-Encoding", "identity")
        if packed.lower() != "identity":
            raise RefusedError(
                Status.UNIMPLEMENTED,
                f"Content-Encoding {shown(packed, 20)} is not taken: send the body as it is, its "
                "tensors with a codec",
            )
        if (request.content_length or 0) > most:
            raise too_large
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                return await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise too_large from None
        except TimeoutError:
            raise RefusedError(
                Status.DEADLINE_EXCEEDED, f"the body did not come within {BODY_TIMEOUT_S:g} s"
            ) from None
        except (OSError, web.RequestPayloadError):
            raise RefusedError(Status.CANCELLED, "the body did not come to its end") from None

    def _check(self, request: web.Request) -> None:
        self.core.security.check(request.headers.get("Authorization"))

    def _found(self, request: web.Request) -> Model:
        self._check(request)
        where = request.match_info
        return self.core.repository.find(where["model"], where.get("version", ""))


def _header_length(request: web.Request) -> int | None:
    text = request.headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise invalid(f"{HEADER_LENGTH} is {shown(text, 20)}; expected a number of bytes")
    return int(text)


def _refused(refusal: RefusedError) -> web.Response:
    headers = {}
    if refusal.status.http == 503:
        headers["Retry-After"] = "1"
    if refusal.status is Status.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    return _json({"error": str(refusal)}, refusal.status.http, headers)


def _json(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response(document, status=status, headers=headers)
