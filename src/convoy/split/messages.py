"""Requests and answers of the Open Inference Protocol, version 2, as Convoy's two ends write them.

A request has one input. Either it is the tensor that the model takes, float32 as any client sends
it, or what a codec made of it:

    datatype BYTES, shape [1], parameters {"codec": "uint4+zstd", "count": 100, "read_by": "3f..."}

of which `read_by`, if it is there, is a digest of what the codec depends on besides: the ranges
of channels, or how pictures are prepared. The parameter `sha256` of the request, if it is there, is
the file that the client takes the model for. A server that has another one of either refuses.
Answers carry `server_s`, the seconds from a request's arrival to its answer, and `computing_s`,
those of them that the server was at work for it alone. Servers that are not ours ignore the former
and lack the latter.

Source: the KServe project's "Open Inference Protocol (V2)", and Triton's BYTES: an element is four
bytes of length, little-endian, and as many bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from convoy.errors import CodecError
from convoy.split.codecs import FloatArray

CODEC, COUNT, READ_BY, DIGEST = "codec", "count", "read_by", "sha256"
SERVER_S, COMPUTING_S = "server_s", "computing_s"
PLAIN = "float32"
"""The codec of a tensor that travels as any client would send it."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Which model a request is for."""

    model: str
    version: int
    sha256: str
    input: str
    read_by: str = ""
    """A digest of what its codecs depend on; empty: not to be compared."""


def request(
    to: Address, codec: str, payload: bytes, shape: tuple[int, ...]
) -> pb.ModelInferRequest:
    """A batch for a model.

    Args:
        payload: what the codec made of it.
        shape: of the tensor that it stands for, its count of images first.
    """
    message = pb.ModelInferRequest(model_name=to.model, model_version=str(to.version))
    message.parameters[DIGEST].string_param = to.sha256
    tensor = message.inputs.add(name=to.input)
    if codec == PLAIN:
        tensor.datatype = "FP32"
        tensor.shape.extend(shape)
        message.raw_input_contents.append(payload)
    else:
        tensor.datatype = "BYTES"
        tensor.shape.append(1)
        tensor.parameters[CODEC].string_param = codec
        tensor.parameters[COUNT].int64_param = shape[0]
        if to.read_by:
            tensor.parameters[READ_BY].string_param = to.read_by
        message.raw_input_contents.append(struct.pack("<I", len(payload)) + payload)
    return message


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a server answered."""

    scores: FloatArray
    """float32 [count, width]."""
    server_s: float
    """From the request's arrival to this; 0 of a server that does not say."""
    computing_s: float
    """Of them, what it was at work for this request; likewise."""


def answer_of(message: pb.ModelInferResponse, count: int, width: int) -> Answered:
    """An answer of so many rows of `width` numbers.

    Raises:
        CodecError: it is not of that shape, or not of finite numbers.
    """
    shapes = [list(output.shape) for output in message.outputs]
    raw = list(message.raw_output_contents)
    if len(shapes) != 1 or shapes[0] != [count, width] or message.outputs[0].datatype != "FP32":
        raise CodecError(f"the server answered with {shapes}; expected FP32 [{count}, {width}]")
    if raw:
        if len(raw[0]) != 4 * count * width:
            raise CodecError(f"the server answered with {len(raw[0])} bytes for {shapes[0]}")
        rows = np.frombuffer(raw[0], np.float32).reshape(count, width)
    else:
        rows = np.asarray(message.outputs[0].contents.fp32_contents, np.float32)
        if rows.size != count * width:
            raise CodecError(f"the server answered with {rows.size} numbers for {shapes[0]}")
        rows = rows.reshape(count, width)
    if not np.isfinite(rows).all():
        raise CodecError("the server answered with numbers that are not finite")
    return Answered(
        scores=rows,
        server_s=message.parameters[SERVER_S].double_param,
        computing_s=message.parameters[COMPUTING_S].double_param,
    )
