"""Requests and answers, byte by byte."""

from __future__ import annotations

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from convoy.errors import CodecError
from convoy.split.messages import Address, answer_of, request
from convoy.split.probes import padded

TO = Address(model="pool2", version=3, sha256="ab", input="features")


def test_a_tensor_travels_as_any_client_sends_it() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    sent = request(TO, "float32", rows.tobytes(), (2, 3))
    assert (sent.model_name, sent.model_version) == ("pool2", "3")
    assert sent.parameters["sha256"].string_param == "ab"
    (tensor,) = sent.inputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("features", "FP32", [2, 3])
    assert sent.raw_input_contents[0] == rows.tobytes()


def test_what_a_codec_made_travels_as_bytes() -> None:
    sent = request(TO, "uint8+zstd", b"abc", (100, 8, 8, 8))
    (tensor,) = sent.inputs
    assert (tensor.datatype, list(tensor.shape)) == ("BYTES", [1])
    assert tensor.parameters["codec"].string_param == "uint8+zstd"
    assert tensor.parameters["count"].int64_param == 100
    assert sent.raw_input_contents[0] == b"\x03\x00\x00\x00abc"


def answer(rows: np.ndarray, *, raw: bool = True) -> pb.ModelInferResponse:
    message = pb.ModelInferResponse()
    output = message.outputs.add(name="logits", datatype="FP32", shape=rows.shape)
    if raw:
        message.raw_output_contents.append(rows.astype(np.float32).tobytes())
    else:
        output.contents.fp32_contents.extend(rows.ravel().tolist())
    return message


@pytest.mark.parametrize("raw", [True, False])
def test_an_answer_of_either_form(raw: bool) -> None:
    rows = np.arange(6.0).reshape(2, 3)
    message = answer(rows, raw=raw)
    message.parameters["server_s"].double_param = 0.25
    message.parameters["computing_s"].double_param = 0.125
    found = answer_of(message, 2, 3)
    assert np.array_equal(found.scores, rows)
    assert (found.server_s, found.computing_s) == (0.25, 0.125)


def test_a_server_that_is_not_ours_says_no_seconds() -> None:
    found = answer_of(answer(np.zeros((1, 3))), 1, 3)
    assert (found.server_s, found.computing_s) == (0.0, 0.0)


def test_answers_that_do_not_fit() -> None:
    with pytest.raises(CodecError, match=r"answered with \[\[2, 3\]\]; expected FP32 \[2, 4\]"):
        answer_of(answer(np.zeros((2, 3))), 2, 4)
    with pytest.raises(CodecError, match=r"answered with \[\]"):
        answer_of(pb.ModelInferResponse(), 2, 3)
    with pytest.raises(CodecError, match="not finite"):
        answer_of(answer(np.full((2, 3), np.nan)), 2, 3)
    short = answer(np.zeros((2, 3)))
    short.raw_output_contents[0] = b"1234"
    with pytest.raises(CodecError, match="4 bytes for"):
        answer_of(short, 2, 3)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 1 << 14, 100_000])
def test_a_probe_has_its_size_and_means_nothing(size: int) -> None:
    sent = padded(size).SerializeToString()
    assert size + 2 <= len(sent) <= size + 7
    assert pb.ServerLiveRequest.FromString(sent).IsInitialized()
