"""Requests that are wrong, drawn at random: by protocol, and by what is wrong with them."""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import zstandard

from convoy.split.manifest import Preprocessing
from convoy.split.pictures import picture_codec

from . import tiny
from .running import PATIENCE_S, call, document, plain

Draw = np.random.Generator
PICTURES = picture_codec(
    "jpeg", Preprocessing(height=8, width=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
)
NUMBERS = (0, 1, -1, 2, 7, 255, 1 << 31, -(1 << 31), (1 << 63) - 1, -(1 << 63))
WORDS = ("", "full", "pool2", "input", "features", "output", "FP32", "BYTES", "uint8", "é\0\n", "1")
INFER = "/inference.GRPCInferenceService/ModelInfer"
WAITING_S = 0.1
"""After so long without an answer, the server is taken to wait for more."""
HEAD = "Inference-Header-Content-Length"


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """A request."""

    kind: str
    protocol: str
    """grpc, http, or socket for bytes as they are."""
    body: bytes
    path: str = "/v2/models/full/infer"
    headers: dict[str, str] = field(default_factory=dict)


def one(draw: Draw, name: str = "full") -> Any:
    """A request that is right."""
    shape, tensor = (tiny.PICTURE, "input") if name == "full" else (tiny.FEATURES, "features")
    return plain(draw.normal(size=(1, *shape)), name, tensor)


def noise(draw: Draw, most: int = 400) -> bytes:
    return draw.bytes(int(draw.integers(0, most)))


def number(draw: Draw) -> int:
    return int(draw.choice(np.asarray(NUMBERS, object)))


def word(draw: Draw) -> str:
    known = str(draw.choice(np.asarray(WORDS, object)))
    return known if draw.random() < 0.7 else known + chr(int(draw.integers(1, 0xD000))) * 300


def flipped(draw: Draw, data: bytes, within: int | None = None) -> bytes:
    """With a few bytes changed, of the first `within`."""
    changed = bytearray(data)
    for at in draw.integers(0, within or len(data), 4):
        changed[at] = int(draw.integers(0, 256))
    return bytes(changed)


def damaged(draw: Draw) -> bytes:
    """A message with bytes changed that are not the tensor's, which may be any."""
    data = one(draw).SerializeToString()
    return flipped(draw, data, len(data) - 4 * math.prod(tiny.PICTURE))


def cut(draw: Draw, data: bytes) -> bytes:
    return data[: int(draw.integers(0, len(data)))]


def shapes(draw: Draw) -> bytes:
    message = one(draw)
    message.inputs[0].shape[:] = [number(draw) for _ in range(draw.integers(0, 9))]
    return bytes(message.SerializeToString())


def words(draw: Draw) -> bytes:
    message = one(draw)
    tensor = message.inputs[0]
    for what, name in (
        (message, "model_name"),
        (message, "model_version"),
        (tensor, "name"),
        (tensor, "datatype"),
    ):
        if draw.random() < 0.4:
            setattr(what, name, word(draw))
    return bytes(message.SerializeToString())


def contents(draw: Draw) -> bytes:
    message = one(draw)
    del message.raw_input_contents[:]
    message.raw_input_contents.extend(noise(draw, 1000) for _ in range(draw.integers(0, 3)))
    message.inputs[0].contents.fp32_contents.extend(draw.normal(size=draw.integers(0, 200)))
    message.inputs[0].contents.bytes_contents.extend([noise(draw)] * int(draw.integers(0, 2)))
    return bytes(message.SerializeToString())


def not_finite(draw: Draw) -> bytes:
    message = one(draw)
    values = np.frombuffer(message.raw_input_contents[0], np.float32).copy()
    values[draw.integers(0, len(values))] = draw.choice([np.nan, np.inf, -np.inf])
    message.raw_input_contents[0] = values.tobytes()
    return bytes(message.SerializeToString())


def parameters(draw: Draw) -> bytes:
    message = one(draw, "pool2")
    for where, name in (
        (message, "sha256"),
        (message.inputs[0], "codec"),
        (message.inputs[0], "count"),
        (message.inputs[0], "shared_memory_region"),
    ):
        if draw.random() < 0.4:
            kind = draw.choice(["bool_param", "int64_param", "string_param", "double_param"])
            value = {"b": True, "i": number(draw), "s": word(draw), "d": 1e308}[kind[0]]
            setattr(where.parameters[name], kind, value)
    return bytes(message.SerializeToString())


def _encoded(draw: Draw, model: str, codec: str, payload: bytes) -> bytes:
    message = one(draw, model)
    tensor = message.inputs[0]
    tensor.datatype, tensor.shape[:] = "BYTES", [1]
    tensor.parameters["codec"].string_param = codec
    tensor.parameters["count"].int64_param = number(draw) if draw.random() < 0.5 else 1
    length = len(payload) if draw.random() < 0.8 else number(draw) & 0xFFFFFFFF
    message.raw_input_contents[0] = struct.pack("<I", length) + payload
    return bytes(message.SerializeToString())


def features(draw: Draw) -> bytes:
    packed = zstandard.ZstdCompressor().compress(bytes(int(draw.choice([32, 64, 10**6]))))
    payload = flipped(draw, packed) if draw.random() < 0.5 else packed
    if draw.random() < 0.3:
        payload = noise(draw)
    names = ["float32", "float16", "uint8", "uint8+zstd", "uint4+zstd", "jpeg", ""]
    return _encoded(draw, "pool2", str(draw.choice(names)), payload)


def pictures(draw: Draw) -> bytes:
    side = int(draw.choice([8, 8, 8, 24]))
    file = PICTURES.encode(draw.integers(0, 256, (1, side, side, 3), np.uint8))
    payload = flipped(draw, file) if draw.random() < 0.7 else cut(draw, file)
    return _encoded(draw, "full", str(draw.choice(["uint8", "jpeg", "mosaic"])), payload)


def trees(draw: Draw) -> bytes:
    """JSON in which something has been replaced by something else."""
    others = (None, True, "x", "", [], {}, [[]], {"a": 1}, 1e308, -1, 1 << 70, [None], ["1"] * 192)
    body = document(draw.normal(size=(1, *tiny.PICTURE)), id="x", outputs=[{"name": "output"}])
    body["parameters"] = {"sha256": "x"} if draw.random() < 0.2 else {}
    body["inputs"][0]["parameters"] = {}
    at: Any = body
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = keys[draw.integers(0, len(keys))]
        if not isinstance(at[key], dict | list) or not at[key] or draw.random() < 0.5:
            at[key] = others[draw.integers(0, len(others))]
            return json.dumps(body).encode()
        at = at[key]


def sizes(draw: Draw) -> bytes:
    """JSON that says something else of the bytes that follow."""
    tensor = {"name": "input", "shape": [1, *tiny.PICTURE], "datatype": "FP32"}
    size = 768 if draw.random() < 0.3 else number(draw)
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": size}}]}).encode()
    return head + noise(draw, 1600)


def right(draw: Draw) -> bytes:
    return json.dumps(document(draw.normal(size=(1, *tiny.PICTURE)))).encode()


def bad_http(draw: Draw) -> bytes:
    """What is almost HTTP."""
    request = (
        b"POST /v2/models/full/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Content-Length: 30\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    )
    return flipped(draw, request) if draw.random() < 0.8 else noise(draw)


Maker = Callable[[Draw], bytes]
KINDS: dict[str, tuple[str, Maker]] = {
    "noise for a message": ("grpc", noise),
    "message with bytes changed": ("grpc", damaged),
    "message cut off": ("grpc", lambda d: cut(d, one(d).SerializeToString())),
    "shapes": ("grpc", shapes),
    "names, versions and types": ("grpc", words),
    "contents": ("grpc", contents),
    "numbers that are not finite": ("grpc", not_finite),
    "parameters": ("grpc", parameters),
    "encoded features": ("grpc", features),
    "encoded pictures": ("grpc", pictures),
    "noise for JSON": ("http", noise),
    "JSON with bytes changed": ("http", lambda d: flipped(d, right(d))),
    "JSON cut off": ("http", lambda d: cut(d, right(d))),
    "JSON with parts replaced": ("http", trees),
    "sizes of binary data": ("http", sizes),
    "paths": ("http", right),
    "what is not HTTP": ("socket", bad_http),
    "what is not HTTP/2": ("socket grpc", noise),
}


def drawn(kind: str, draw: Draw) -> Wrong:
    """A request of that kind."""
    protocol, make = KINDS[kind]
    body = make(draw)
    if kind == "paths":
        parts = [word(draw).encode("utf-8").hex() for _ in range(2)]
        path = f"/v2/models/%{parts[0][:2] or '2f'}{parts[0][:40]}/versions/{parts[1][:9]}/infer"
        return Wrong(kind=kind, protocol=protocol, body=body, path=path)
    headers = {}
    if kind == "sizes of binary data":
        end = body.index(b"]}") + 2
        headers[HEAD] = str(end if draw.random() < 0.7 else draw.integers(-5, 3000))
    return Wrong(kind=kind, protocol=protocol, body=body, headers=headers)


class Asker:
    """Sends them, and says what came back: a status; or that it closes, waits, or greets."""

    def __init__(self, grpc_address: str, http_address: str) -> None:
        self.addresses = {"socket": http_address, "socket grpc": grpc_address}
        self.http_address = http_address
        self.channel = grpc.insecure_channel(grpc_address)
        self._infer = self.channel.unary_unary(INFER)

    def __call__(self, wrong: Wrong) -> str:
        if wrong.protocol == "grpc":
            try:
                self._infer(wrong.body, timeout=PATIENCE_S)
            except grpc.RpcError as error:
                assert "Traceback" not in error.details()
                return str(error.code().name)
            return "OK"
        if wrong.protocol == "http":
            status, _, body = call(self.http_address, wrong.path, wrong.body, wrong.headers)
            assert b"Traceback" not in body
            return str(status)
        host, _, port = self.addresses[wrong.protocol].rpartition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
            connection.settimeout(WAITING_S)
            try:
                connection.sendall(wrong.body + b"\r\n\r\n")
                answer = connection.recv(4096)
            except TimeoutError:
                return "waits"
            except ConnectionError:
                return "closed"
        assert b"Traceback" not in answer
        if wrong.protocol == "socket":
            return answer[9:12].decode() if answer.startswith(b"HTTP/1.") else "closed"
        return "HTTP/2" if answer else "closed"

    def close(self) -> None:
        self.channel.close()
