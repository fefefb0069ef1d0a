"""The Open Inference Protocol over gRPC: its messages into questions, answers into its messages.

Handlers get bytes and parse them here, so that a message which is none is refused as any other
malformed request is, and so that large ones are parsed in a thread.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from convoy.split.messages import CODEC, COMPUTING_S, COUNT, DIGEST, READ_BY, SERVER_S
from convoy.split.server.core import Answer, Core, Visit
from convoy.split.server.refusals import RefusedError, Status, invalid
from convoy.split.server.requests import Question, Tensor
from convoy.version import __version__

SERVICE = "inference.GRPCInferenceService"
SPARE_STREAMS = 32
"""For questions of one connection that are refused, or no inferences: what more has to wait."""
Handler = Callable[[bytes, Any], Awaitable[Any]]


def options(message_bytes: int, max_concurrent: int) -> list[tuple[str, int]]:
    """How gRPC's core is set up."""
    return [
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", max_concurrent + SPARE_STREAMS),
        ("grpc.so_reuseport", 0),  # a port that is taken is an error, not one that is shared
        ("grpc.compression_enabled_algorithms_bitset", 1),  # none: what unpacks is not bounded
        # Clients that look every second whether the server is there are not a nuisance.
        ("grpc.http2.min_ping_interval_without_data_ms", 500),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]


class GrpcFront:
    """The six methods that there are; gRPC answers UNIMPLEMENTED to the others."""

    def __init__(self, core: Core) -> None:
        self.core = core

    def handlers(self) -> Any:
        """What a grpc.aio.Server takes."""
        methods: dict[str, Handler] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
        }
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    self._guarded(method), response_serializer=_serialised
                )
                for name, method in methods.items()
            },
        )

    def _guarded(self, method: Handler) -> Handler:
        """A method whose refusals, and whatever else goes wrong, become gRPC's statuses."""

        async def guarded(data: bytes, context: Any) -> Any:
            try:
                return await method(data, context)
            except RefusedError as error:
                refusal = error
            except Exception as error:
                refusal = self.core.unforeseen(error)
            return await context.abort(grpc.StatusCode[refusal.status.name], str(refusal))

        return guarded

    async def _live(self, _data: bytes, _context: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def _ready(self, _data: bytes, _context: Any) -> Any:
        return pb.ServerReadyResponse(ready=self.core.is_ready)

    async def _model_ready(self, data: bytes, context: Any) -> Any:
        self.core.security.check(_authorization(context))
        asked = _parsed(pb.ModelReadyRequest, data)
        self.core.repository.find(asked.name, asked.version)
        return pb.ModelReadyResponse(ready=self.core.is_ready)

    async def _server_metadata(self, _data: bytes, context: Any) -> Any:
        self.core.security.check(_authorization(context))
        return pb.ServerMetadataResponse(name="convoy", version=__version__)

    async def _model_metadata(self, data: bytes, context: Any) -> Any:
        self.core.security.check(_authorization(context))
        asked = _parsed(pb.ModelMetadataRequest, data)
        model = self.core.repository.find(asked.name, asked.version)
        about = pb.ModelMetadataResponse(name=model.name, platform="onnxruntime_onnx")
        about.versions.extend(map(str, self.core.repository.versions(model.name)))
        for tensors, spec in ((about.inputs, model.input), (about.outputs, model.output)):
            tensors.add(name=spec.name, datatype="FP32", shape=(-1, *spec.shape))
        return about

    async def _infer(self, data: bytes, context: Any) -> Any:
        async def read(visit: Visit) -> Question:
            visit.arrived, visit.received_bytes = visit.began, len(data)
            return await self.core.off_loop(len(data), question_of, data)

        return await self.core.serve(
            "grpc", peer_of(context.peer()), _authorization(context), read, response_of
        )


def question_of(data: bytes) -> Question:
    """A ModelInferRequest, translated. Raises RefusedError."""
    message = _parsed(pb.ModelInferRequest, data)
    raw = list(message.raw_input_contents)
    if raw and len(raw) != len(message.inputs):
        raise invalid(
            f"{len(message.inputs)} inputs and {len(raw)} raw_input_contents; expected one for each"
        )
    tensors = tuple(_tensor(t, raw[i] if raw else None) for i, t in enumerate(message.inputs[:2]))
    _refuse_shared_memory(message.outputs)
    return Question(
        model=message.model_name,
        version=message.model_version,
        sha256=_parameter(message.parameters, DIGEST),
        id=message.id,
        inputs=tensors,
        outputs=tuple(output.name for output in message.outputs[:8]),
    )


def _tensor(tensor: Any, raw: bytes | None) -> Tensor:
    _refuse_shared_memory([tensor])
    contents, numbers = tensor.contents, None
    if raw is not None and tensor.HasField("contents"):
        raise invalid(f"input {tensor.name[:100]!r} has contents beside raw_input_contents")
    if raw is None and tensor.datatype == "BYTES":
        if len(contents.bytes_contents) != 1:
            count = len(contents.bytes_contents)
            raise invalid(f"input {tensor.name[:100]!r} has {count} elements of BYTES; expected 1")
        element = contents.bytes_contents[0]
        raw = len(element).to_bytes(4, "little") + element
    elif raw is None and len(contents.fp32_contents):
        given = contents.fp32_contents
        numbers = np.fromiter(given, np.float32, count=len(given))
    return Tensor(
        name=tensor.name,
        datatype=tensor.datatype,
        shape=tuple(tensor.shape[:16]),
        codec=_parameter(tensor.parameters, CODEC),
        count=_parameter(tensor.parameters, COUNT),
        read_by=_parameter(tensor.parameters, READ_BY),
        raw=raw,
        numbers=numbers,
    )


def response_of(answer: Answer) -> Any:
    """A ModelInferResponse."""
    message = pb.ModelInferResponse(
        model_name=answer.model.name,
        model_version=str(answer.model.version),
        id=answer.question.id,
    )
    message.parameters[SERVER_S].double_param = answer.server_s
    message.parameters[COMPUTING_S].double_param = answer.computing_s
    message.outputs.add(
        name=answer.model.output.name, datatype="FP32", shape=list(answer.rows.shape)
    )
    message.raw_output_contents.append(answer.rows.astype("<f4", copy=False).tobytes())
    return message


def peer_of(text: str) -> str:
    """The address in what gRPC calls a peer, as ipv4:127.0.0.1:40000, without its port."""
    kind, _, rest = urllib.parse.unquote(text).partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else kind


def _refuse_shared_memory(tensors: Any) -> None:
    for tensor in tensors:
        if "shared_memory_region" in tensor.parameters:
            message = f"tensor {tensor.name[:100]!r}: this server has no shared memory; send bytes"
            raise RefusedError(Status.INVALID_ARGUMENT, message)


def _parameter(parameters: Any, name: str) -> object:
    """A parameter's value; None where it is not there."""
    if name not in parameters:
        return None
    value = parameters[name]
    kind = value.WhichOneof("parameter_choice")
    return getattr(value, kind) if kind else ""


def _authorization(context: Any) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            return value if isinstance(value, str) else None
    return None


def _parsed(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise invalid(f"the message is no {kind.DESCRIPTOR.name}: its bytes do not parse") from None


def _serialised(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
