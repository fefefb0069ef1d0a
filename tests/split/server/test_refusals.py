"""Whatever is wrong with a request is named, with the status for it, over both protocols."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zstandard

from convoy.split.server.core import Limits
from convoy.split.server.refusals import Status

from . import tiny
from .running import Running, call, document, infer, plain, refused, running

ONE = np.zeros((1, *tiny.PICTURE), np.float32)


def encoded(codec: Any, count: Any, payload: bytes, model: str = "pool2") -> Any:
    """A request with what a codec is said to have made."""
    message = plain(ONE, model, "features")
    tensor = message.inputs[0]
    tensor.datatype = "BYTES"
    tensor.shape[:] = [1]
    for name, value in (("codec", codec), ("count", count)):
        if isinstance(value, str):
            tensor.parameters[name].string_param = value
        elif value is not None:
            tensor.parameters[name].int64_param = value
    message.raw_input_contents[:] = [struct.pack("<I", len(payload)) + payload]
    return message


def changed(change: Callable[[Any], object]) -> Any:
    message = plain(ONE)
    change(message)
    return message


def set_shape(*shape: int) -> Callable[[Any], object]:
    return lambda message: message.inputs[0].shape.__setitem__(slice(None), shape)


def setting(path: str, value: Any) -> Callable[[Any], object]:
    def change(message: Any) -> None:
        *parents, name = path.split(".")
        for parent in parents:
            message = message.inputs[0] if parent == "input" else getattr(message, parent)
        setattr(message, name, value)

    return change


BOMB = zstandard.ZstdCompressor().compress(bytes(10**6))
GRPC: dict[str, tuple[Any, str, str]] = {
    "unknown model": (plain(ONE, "ful"), "NOT_FOUND", "Nearest: full"),
    "unknown version": (
        changed(setting("model_version", "7")),
        "NOT_FOUND",
        "no version '7'. Here: 1, 2",
    ),
    "no number": (changed(setting("model_version", "x")), "NOT_FOUND", "no version 'x'"),
    "negative": (changed(setting("model_version", "-1")), "NOT_FOUND", "no version '-1'"),
    "another input": (
        changed(setting("input.name", "inptu")),
        "INVALID_ARGUMENT",
        "Nearest: input",
    ),
    "another type": (
        changed(setting("input.datatype", "FP64")),
        "INVALID_ARGUMENT",
        "'FP64'; expected FP32",
    ),
    "another shape": (
        changed(set_shape(1, 3, 8, 7)),
        "INVALID_ARGUMENT",
        "[1, 3, 8, 7]; expected [images, 3, 8, 8]",
    ),
    "no images": (changed(set_shape(0, 3, 8, 8)), "INVALID_ARGUMENT", "expected [images"),
    "fewer than none": (changed(set_shape(-1, 3, 8, 8)), "INVALID_ARGUMENT", "expected [images"),
    "huge": (changed(set_shape(1 << 62, 3, 8, 8)), "INVALID_ARGUMENT", "768 bytes; expected"),
    "no dimensions": (changed(set_shape()), "INVALID_ARGUMENT", "expected [images"),
    "two inputs": (
        changed(lambda m: (m.inputs.add(name="input"), m.raw_input_contents.append(b""))),
        "INVALID_ARGUMENT",
        "2 inputs; full takes one",
    ),
    "no inputs": (
        changed(lambda m: (m.inputs.pop(), m.raw_input_contents.pop())),
        "INVALID_ARGUMENT",
        "0 inputs",
    ),
    "no content": (
        changed(lambda m: m.raw_input_contents.pop()),
        "INVALID_ARGUMENT",
        "no content",
    ),
    "two contents": (
        changed(lambda m: m.raw_input_contents.append(b"")),
        "INVALID_ARGUMENT",
        "1 inputs and 2 raw_input_contents",
    ),
    "both contents": (
        changed(lambda m: m.inputs[0].contents.fp32_contents.append(1)),
        "INVALID_ARGUMENT",
        "beside",
    ),
    "unknown output": (
        changed(lambda m: m.outputs.add(name="outptu")),
        "INVALID_ARGUMENT",
        "Nearest: output",
    ),
    "not finite": (plain(ONE + np.nan), "INVALID_ARGUMENT", "not finite"),
    "infinite": (plain(ONE + np.inf), "INVALID_ARGUMENT", "not finite"),
    "too large to compute": (plain(ONE + 3e38), "INVALID_ARGUMENT", "answer to this input"),
    "another file": (
        changed(lambda m: setattr(m.parameters["sha256"], "string_param", "0" * 64)),
        "FAILED_PRECONDITION",
        "Here: version 1 (",
    ),
    "no text": (
        changed(lambda m: setattr(m.parameters["sha256"], "bool_param", True)),
        "INVALID_ARGUMENT",
        "expected text",
    ),
    "shared memory": (
        changed(
            lambda m: setattr(m.inputs[0].parameters["shared_memory_region"], "string_param", "x")
        ),
        "INVALID_ARGUMENT",
        "no shared memory",
    ),
    "codec of a tensor": (
        changed(lambda m: setattr(m.inputs[0].parameters["codec"], "string_param", "uint8")),
        "INVALID_ARGUMENT",
        "what a codec made is BYTES",
    ),
    "unknown codec": (encoded("uint7", 1, b""), "INVALID_ARGUMENT", "Nearest: uint8"),
    "pictures' codec": (encoded("jpeg", 1, b""), "INVALID_ARGUMENT", "unknown codec of pool2"),
    "no codec": (encoded(None, 1, b""), "INVALID_ARGUMENT", "expected the parameter codec"),
    "no count": (encoded("uint8", None, b""), "INVALID_ARGUMENT", "count is None"),
    "count of none": (encoded("uint8", 0, b""), "INVALID_ARGUMENT", "count is 0"),
    "count that is text": (encoded("uint8", "one", b""), "INVALID_ARGUMENT", "count is 'one'"),
    "too many": (encoded("uint8", 1 << 62, b""), "INVALID_ARGUMENT", "at a time"),
    "too short": (encoded("uint8", 2, bytes(64)), "INVALID_ARGUMENT", "64 bytes; expected 128"),
    "no frame": (encoded("uint8+zstd", 1, bytes(9)), "INVALID_ARGUMENT", "not a frame of zstd"),
    "bomb": (encoded("uint8+zstd", 1, BOMB), "INVALID_ARGUMENT", "expected 64 bytes within"),
    "half floats": (
        encoded("float16", 1, np.full(64, np.nan, np.float16).tobytes()),
        "INVALID_ARGUMENT",
        "not finite",
    ),
}


@pytest.mark.parametrize("name", GRPC)
def test_over_grpc(served: Running, name: str) -> None:
    message, status, text = GRPC[name]
    found, details = refused(lambda: infer(served.addresses.grpc, message))
    assert (found, text in details) == (status, True), details


def http(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    body = document(ONE)
    change(body)
    return body


def tensor(**changes: Any) -> dict[str, Any]:
    return http(lambda body: body["inputs"][0].update(changes))


INFER = "/v2/models/full/infer"
HEAD = "Inference-Header-Content-Length"
HTTP: dict[str, tuple[str, Any, dict[str, str], int, str]] = {
    "unknown model": ("/v2/models/ful/infer", document(ONE), {}, 404, "Nearest: full"),
    "unknown version": ("/v2/models/full/versions/7/infer", document(ONE), {}, 404, "Here: 1, 2"),
    "unknown path": ("/v3", None, {}, 404, "Known: /v2"),
    "another method": (INFER, None, {}, 405, "Method Not Allowed"),
    "no JSON": (INFER, b"{", {}, 400, "not JSON"),
    "no text": (INFER, b"\xff\xfe\xff", {}, 400, "not JSON"),
    "empty": (INFER, b"", {}, 400, "not JSON"),
    "no object": (INFER, [1], {}, 400, "expected a JSON object"),
    "deep": (INFER, b"[" * 100_000, {}, 400, "nested too deeply"),
    "not a number": (INFER, b'{"inputs": [NaN]}', {}, 400, "NaN is no number"),
    "no inputs": (INFER, {}, {}, 400, "inputs: expected a list"),
    "inputs of text": (INFER, {"inputs": ["x"]}, {}, 400, "an input: expected a JSON object"),
    "no name": (INFER, tensor(name=None), {}, 400, "an input's name: expected text"),
    "no shape": (INFER, tensor(shape="1"), {}, 400, "shape: expected a list"),
    "shape of text": (INFER, tensor(shape=["1", 3, 8, 8]), {}, 400, "expected whole numbers"),
    "another type": (INFER, tensor(datatype="INT8"), {}, 400, "'INT8'; expected FP32"),
    "another shape": (INFER, tensor(shape=[192]), {}, 400, "[192]; expected [images, 3, 8, 8]"),
    "too few": (INFER, tensor(data=[1, 2]), {}, 400, "the shape [2]; expected [1, 3, 8, 8]"),
    "numbers as text": (INFER, tensor(data=["1"] * 192), {}, 400, "not all numbers"),
    "ragged": (INFER, tensor(data=[[1], [1, 2]]), {}, 400, "the shape [2]; expected"),
    "a long text": (INFER, tensor(data=["a" * 100_000, *[""] * 191]), {}, 400, "not all numbers"),
    "numbers and truths": (INFER, tensor(data=[1, True] * 96), {}, 400, "not all numbers"),
    "objects": (INFER, tensor(data=[{}] * 192), {}, 400, "not all numbers"),
    "vast numbers": (INFER, tensor(data=[10**400] * 192), {}, 400, "not all numbers"),
    "too large": (INFER, tensor(data=[1e39] * 192), {}, 400, "not finite"),
    "no data": (INFER, http(lambda b: b["inputs"][0].pop("data")), {}, 400, "neither data nor"),
    "sizes without bytes": (
        INFER,
        tensor(parameters={"binary_data_size": 768}),
        {},
        400,
        "0 bytes follow the JSON",
    ),
    "negative size": (INFER, tensor(parameters={"binary_data_size": -1}), {}, 400, "is -1"),
    "parameters of text": (INFER, tensor(parameters="x"), {}, 400, "expected a JSON object"),
    "text as BYTES": (
        INFER,
        tensor(datatype="BYTES", shape=[1], parameters={"codec": "uint8", "count": 1}),
        {},
        400,
        "no binary content",
    ),
    "another file": (
        INFER,
        document(ONE, parameters={"sha256": "0" * 64}),
        {},
        412,
        "Here: version 1 (",
    ),
    "unknown output": (INFER, document(ONE, outputs=[{"name": "o"}]), {}, 400, "Known: output"),
    "classification": (
        INFER,
        document(ONE, outputs=[{"name": "output", "parameters": {"classification": 2}}]),
        {},
        400,
        "classification is not supported",
    ),
    "head of text": (INFER, document(ONE), {HEAD: "x"}, 400, "expected a number of bytes"),
    "head beyond": (INFER, document(ONE), {HEAD: "99999"}, 400, "and the body has"),
    "bytes too many": (INFER, b"{}" + bytes(9), {HEAD: "2"}, 400, "inputs: expected a list"),
    "packed": (INFER, document(ONE), {"Content-Encoding": "gzip"}, 415, "send the body as it is"),
}


@pytest.mark.parametrize("name", HTTP)
def test_over_http(served: Running, name: str) -> None:
    path, body, headers, status, text = HTTP[name]
    found, _, answer = call(served.addresses.http, path, body, headers)
    error = json.loads(answer)["error"]
    assert (found, text in error) == (status, True), error


def test_requests_that_are_too_large(exported: Any) -> None:
    limits = Limits(message_bytes=4096, batch_window_s=0)
    many = np.zeros((8, *tiny.PICTURE), np.float32)
    with running(exported, limits) as server:
        status, details = refused(lambda: infer(server.addresses.grpc, plain(many)))
        assert (status, "larger than max" in details) == ("RESOURCE_EXHAUSTED", True)
        status, _, answer = call(server.addresses.http, INFER, document(many))
        assert (status, b"--max-message" in answer) == (413, True)
        text = document(ONE, id="x" * 1100)
        status, _, answer = call(server.addresses.http, INFER, text)
        assert (status, b"send tensors as binary data" in answer) == (400, True)
        packed = zstandard.ZstdCompressor().compress(bytes(64 * 1000))
        message = encoded("uint8+zstd", 1000, packed)
        status, details = refused(lambda: infer(server.addresses.grpc, message))
        assert (status, "send 64 at a time" in details) == ("INVALID_ARGUMENT", True)


def test_an_error_of_ours_is_a_number_in_the_log(exported: Any) -> None:
    def fail(rows: Any) -> Any:
        raise ZeroDivisionError("secret")

    with running(exported) as server:
        for batcher in server.server.core.batchers.values():
            batcher.run = fail
        status, details = refused(lambda: infer(server.addresses.grpc, plain(ONE)))
        assert status == "INTERNAL"
        code, _, answer = call(server.addresses.http, INFER, document(ONE))
        assert code == 500
        ids = [line["id"] for line in server.logged() if line["event"] == "unforeseen"]
    assert ids[0] in details
    assert ids[1] in json.loads(answer)["error"]
    assert b"secret" not in answer
    assert b"Traceback" not in answer


def test_every_status_has_a_number() -> None:
    assert all(400 <= status.http < 600 for status in Status if status is not Status.OK)
