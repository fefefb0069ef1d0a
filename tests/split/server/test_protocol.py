"""Clients that are not ours get right answers, over both protocols."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2 as pb

from convoy.split import manifest as manifests
from convoy.split.codecs import FEATURE_CODECS, feature_codec
from convoy.split.messages import Address, answer_of, request
from convoy.split.pictures import picture_codec

from . import tiny
from .running import Running, call, document, infer, plain, refused, rows_of, stub


def expected(rows: Any, version: int = 2, cut: bool = False) -> Any:
    shape = tiny.FEATURES if cut else tiny.PICTURE
    return rows.reshape(len(rows), -1) @ tiny.weights(version + 10 * cut, shape)


@pytest.fixture
def pictures(draw: np.random.Generator) -> Any:
    return draw.normal(size=(3, *tiny.PICTURE)).astype(np.float32)


@pytest.fixture
def features(draw: np.random.Generator) -> Any:
    return draw.uniform(0, 1, size=(3, *tiny.FEATURES)).astype(np.float32)


@pytest.mark.parametrize("version", ["", "1", "2"])
def test_tritons_grpc_client(served: Running, pictures: Any, version: str) -> None:
    with tritonclient.grpc.InferenceServerClient(served.addresses.grpc) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("full", version)
        assert client.get_server_metadata().name == "convoy"
        about = client.get_model_metadata("pool2", version)
        assert list(about.versions) == ["1", "2"]
        assert list(about.inputs[0].shape) == [-1, *tiny.FEATURES]
        given = tritonclient.grpc.InferInput("input", list(pictures.shape), "FP32")
        given.set_data_from_numpy(pictures)
        answer = client.infer("full", [given], version, request_id="seven")
    found = answer.as_numpy("output")
    np.testing.assert_allclose(found, expected(pictures, int(version or 2)), rtol=1e-4, atol=1e-4)
    assert answer.get_response().id == "seven"
    assert answer.get_response().model_version == (version or "2")
    assert answer.get_response().parameters["server_s"].double_param > 0


@pytest.mark.parametrize("version", ["", "1"])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_tritons_http_client(
    served: Running, pictures: Any, version: str, binary_in: bool, binary_out: bool | None
) -> None:
    asked = (
        None
        if binary_out is None
        else [tritonclient.http.InferRequestedOutput("output", binary_data=binary_out)]
    )
    with tritonclient.http.InferenceServerClient(served.addresses.http) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("full", version)
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        assert client.get_model_metadata("full", version)["versions"] == ["1", "2"]
        given = tritonclient.http.InferInput("input", list(pictures.shape), "FP32")
        given.set_data_from_numpy(pictures, binary_data=binary_in)
        answer = client.infer("full", [given], version, outputs=asked, request_id="seven")
    found = answer.as_numpy("output")
    np.testing.assert_allclose(found, expected(pictures, int(version or 2)), rtol=1e-4, atol=1e-4)
    about = answer.get_response()
    assert about["id"] == "seven"
    assert about["parameters"]["server_s"] > 0
    assert ("data" in about["outputs"][0]) == (binary_out is False)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl(served: Running, pictures: Any) -> None:
    url = f"http://{served.addresses.http}/v2/models/full/versions/1/infer"
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--data", "@-", url],
        input=json.dumps(document(pictures)),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = np.asarray(json.loads(done.stdout)["outputs"][0]["data"]).reshape(3, -1)
    np.testing.assert_allclose(found, expected(pictures, 1), rtol=1e-4, atol=1e-4)


def test_lists_of_lists_are_numbers_too(served: Running, pictures: Any) -> None:
    body = document(pictures)
    body["inputs"][0]["data"] = pictures.tolist()
    status, _, answer = call(served.addresses.http, "/v2/models/full/infer", body)
    assert status == 200
    found = np.asarray(json.loads(answer)["outputs"][0]["data"]).reshape(3, -1)
    np.testing.assert_allclose(found, expected(pictures), rtol=1e-4, atol=1e-4)


def test_numbers_in_a_grpc_message(served: Running, pictures: Any) -> None:
    message = plain(pictures)
    del message.raw_input_contents[:]
    message.inputs[0].contents.fp32_contents.extend(pictures.reshape(-1).tolist())
    assert np.array_equal(
        rows_of(infer(served.addresses.grpc, message)),
        rows_of(infer(served.addresses.grpc, plain(pictures))),
    )


def encoded_features(name: str, features: Any) -> tuple[bytes, Any]:
    """What travels, and what the server makes of it."""
    codec = feature_codec(
        name, shape=tiny.FEATURES, low=(-1.0, -2.0, 0.0, 0.0), high=(1.0, 2.0, 3.0, 4.0)
    )
    payload = codec.encode(features)
    return payload, codec.decode(payload, len(features))


@pytest.mark.parametrize("name", FEATURE_CODECS)
@pytest.mark.parametrize("version", [1, 2])
def test_encoded_features(
    served: Running, exported: Path, features: Any, name: str, version: int
) -> None:
    payload, decoded = encoded_features(name, features)
    entry = manifests.load(exported).variants[version - 1].cuts[0]
    to = Address(model="pool2", version=version, sha256=entry.cloud.sha256, input="features")
    message = request(to, name, payload, features.shape)
    found = answer_of(infer(served.addresses.grpc, message), 3, tiny.CLASSES)
    rows, server_s = found.scores, found.server_s
    assert 0 < found.computing_s <= server_s
    np.testing.assert_allclose(rows, expected(decoded, version, cut=True), rtol=1e-4, atol=1e-4)
    assert server_s > 0


def test_features_of_other_ranges_are_refused(
    served: Running, exported: Path, features: Any
) -> None:
    payload, _ = encoded_features("uint8", features)
    entry = manifests.load(exported).variants[1].cuts[0]
    to = Address(
        model="pool2",
        version=2,
        sha256=entry.cloud.sha256,
        input="features",
        read_by=entry.digest,
    )
    infer(served.addresses.grpc, request(to, "uint8", payload, features.shape))
    wider = replace(entry, high=tuple(high + 0.5 for high in entry.high))
    other = request(replace(to, read_by=wider.digest), "uint8", payload, features.shape)
    status, text = refused(lambda: infer(served.addresses.grpc, other))
    assert status == "FAILED_PRECONDITION"
    assert "read here by other ranges" in text
    assert "Copy one exported folder to both sides" in text


def test_pictures_that_are_prepared_otherwise_have_another_digest(exported: Path) -> None:
    by = manifests.load(exported).preprocessing
    assert by is not None
    assert by.digest == replace(by).digest
    assert by.digest != replace(by, mean=tuple(mean + 0.1 for mean in by.mean)).digest


@pytest.mark.parametrize("name", FEATURE_CODECS)
def test_encoded_features_over_http(served: Running, features: Any, name: str) -> None:
    payload, decoded = encoded_features(name, features)
    found = http_encoded(served, "pool2", "features", name, payload)
    np.testing.assert_allclose(found, expected(decoded, 2, cut=True), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["uint8", "jpeg", "mosaic"])
def test_encoded_pictures(
    served: Running, exported: Path, draw: np.random.Generator, name: str
) -> None:
    manifest = manifests.load(exported)
    assert manifest.preprocessing is not None
    codec = picture_codec(name, manifest.preprocessing)
    payload = codec.encode(draw.integers(0, 256, (3, 8, 8, 3), np.uint8))
    wanted = expected(codec.decode(payload, 3), 2)
    digest = manifest.variants[1].whole.sha256
    to = Address(model="full", version=2, sha256=digest, input="input")
    answer = infer(served.addresses.grpc, request(to, name, payload, (3, 3, 8, 8)))
    np.testing.assert_allclose(rows_of(answer), wanted, rtol=1e-4, atol=1e-4)
    found = http_encoded(served, "full", "input", name, payload)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def http_encoded(served: Running, model: str, name: str, codec: str, payload: bytes) -> Any:
    """The answer to three encoded images, as binary data in both directions."""
    tensor = {
        "name": name,
        "datatype": "BYTES",
        "shape": [1],
        "parameters": {"codec": codec, "count": 3, "binary_data_size": len(payload) + 4},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body = head + struct.pack("<I", len(payload)) + payload
    status, headers, answer = call(
        served.addresses.http,
        f"/v2/models/{model}/infer",
        body,
        {"Inference-Header-Content-Length": str(len(head))},
    )
    assert status == 200, answer
    at = int(headers["Inference-Header-Content-Length"])
    return np.frombuffer(answer[at:], np.float32).reshape(3, -1)


def test_bytes_in_a_grpc_messages_contents(served: Running, features: Any) -> None:
    payload, _ = encoded_features("uint8", features)
    to = Address(model="pool2", version=2, sha256="", input="features")
    message = request(to, "uint8", payload, features.shape)
    del message.parameters["sha256"]
    usual = rows_of(infer(served.addresses.grpc, message))
    del message.raw_input_contents[:]
    message.inputs[0].contents.bytes_contents.append(payload)
    assert np.array_equal(rows_of(infer(served.addresses.grpc, message)), usual)


def test_what_is_not_served_is_not_implemented(served: Running) -> None:
    with stub(served.addresses.grpc) as asked:
        for name, kind in (
            ("ModelConfig", pb.ModelConfigRequest),
            ("RepositoryIndex", pb.RepositoryIndexRequest),
            ("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest),
        ):
            status, _ = refused(lambda name=name, kind=kind: getattr(asked, name)(kind()))
            assert status == "UNIMPLEMENTED"


def test_clients_that_ping_often_are_not_sent_away(served: Running) -> None:
    host, _, port = served.addresses.grpc.rpartition(":")
    ping, settings, goaway = 6, 4, 7  # kinds of frames, RFC 9113

    def frame(kind: int, payload: bytes) -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([kind, 0]) + bytes(4) + payload

    kinds: list[int] = []
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(settings, b""))
        stream = connection.makefile("rb")
        for number in range(20):
            connection.sendall(frame(ping, number.to_bytes(8, "big")))
            while kinds.count(ping) <= number:
                head = stream.read(9)
                stream.read(int.from_bytes(head[:3], "big"))
                kinds.append(head[3])
                assert head[3] != goaway
