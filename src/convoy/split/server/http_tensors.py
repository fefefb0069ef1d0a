"""Bodies of the Open Inference Protocol over HTTP, with the binary tensor extension.

A body is JSON; or JSON of `Inference-Header-Content-Length` bytes and then the tensors, each of the
`binary_data_size` that its parameters say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from convoy.split.messages import CODEC, COMPUTING_S, COUNT, DIGEST, READ_BY, SERVER_S
from convoy.split.server.core import Answer
from convoy.split.server.refusals import invalid, shown
from convoy.split.server.requests import Question, Tensor

HEADER_LENGTH = "Inference-Header-Content-Length"
JSON_PART = 4
"""JSON may have a quarter of the largest message: what it becomes is larger than its text."""
_NO_PARAMETERS: Mapping[str, Any] = {}


def question_of(
    body: bytes, head: int | None, model: str, version: str, most_bytes: int
) -> Question:
    """A body, translated.

    Args:
        head: bytes of JSON in it; all of them where it is None.
        most_bytes: of any request.

    Raises:
        RefusedError: it is not what the protocol has.
    """
    if head is not None and head > len(body):
        raise invalid(f"{HEADER_LENGTH} is {head}, and the body has {len(body)} bytes")
    text = body if head is None else body[:head]
    if len(text) > most_bytes // JSON_PART:
        raise invalid(
            f"{len(text)} bytes of JSON; expected {most_bytes // JSON_PART} at most: send tensors "
            f"as binary data, after the JSON, with {HEADER_LENGTH}"
        )
    document = _parsed(text)
    parameters = _parameters(document, "the request")
    outputs = [_object(o, "an output") for o in _list(document.get("outputs", []), "outputs")]
    is_binary = parameters.get("binary_data_output", False) is True
    for output in outputs:
        own = _parameters(output, "an output")
        if "classification" in own:
            raise invalid("the parameter classification is not supported; expected none")
        is_binary = own.get("binary_data", is_binary) is True
    binary = memoryview(body)[len(text) :]
    tensors = []
    for item in _list(document.get("inputs"), "inputs"):
        tensor, size = _tensor(_object(item, "an input"), binary)
        tensors.append(tensor)
        binary = binary[size:]
    if len(binary):
        raise invalid(f"{len(binary)} bytes follow the inputs; expected none")
    return Question(
        model=model,
        version=version,
        sha256=parameters.get(DIGEST),
        id=_text(document.get("id", ""), "id"),
        inputs=tuple(tensors),
        outputs=tuple(_text(output.get("name"), "an output's name") for output in outputs),
        is_binary=is_binary,
    )


def response_of(answer: Answer) -> tuple[bytes, dict[str, str]]:
    """A body and its headers."""
    question, model, rows = answer.question, answer.model, answer.rows
    output: dict[str, Any] = {
        "name": model.output.name,
        "datatype": "FP32",
        "shape": list(rows.shape),
    }
    document = {
        "model_name": model.name,
        "model_version": str(model.version),
        **({"id": question.id} if question.id else {}),
        "parameters": {SERVER_S: answer.server_s, COMPUTING_S: answer.computing_s},
        "outputs": [output],
    }
    if not question.is_binary:
        output["data"] = rows.reshape(-1).tolist()
        return json.dumps(document).encode(), {"Content-Type": "application/json"}
    data = rows.astype("<f4", copy=False).tobytes()
    output["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps(document).encode()
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return head + data, headers


def _tensor(item: Mapping[str, Any], binary: memoryview) -> tuple[Tensor, int]:
    """An input, and the bytes of `binary` that are its content."""
    name = _text(item.get("name"), "an input's name")
    what = f"input {shown(name)}"
    shape = _list(item.get("shape"), f"{what}: shape")[:16]
    if not all(type(n) is int for n in shape):
        raise invalid(f"{what}: shape is {shown(shape)}; expected whole numbers")
    parameters = _parameters(item, what)
    if "shared_memory_region" in parameters:
        raise invalid(f"{what}: this server has no shared memory; send bytes")
    size, raw, numbers = parameters.get("binary_data_size"), None, None
    if size is None:
        if "data" not in item:
            raise invalid(f"{what} has neither data nor the parameter binary_data_size")
        numbers = _list(item["data"], f"{what}: data")
    else:
        if type(size) is not int or not 0 <= size <= len(binary):
            raise invalid(
                f"{what}: binary_data_size is {shown(size)}, and {len(binary)} bytes follow the "
                f"JSON; {HEADER_LENGTH} says where it ends"
            )
        if "data" in item:
            raise invalid(f"{what} has data beside binary_data_size; expected one of them")
        raw = binary[:size]
    tensor = Tensor(
        name=name,
        datatype=_text(item.get("datatype"), f"{what}: datatype"),
        shape=tuple(shape),
        codec=parameters.get(CODEC),
        count=parameters.get(COUNT),
        read_by=parameters.get(READ_BY),
        raw=raw,
        numbers=numbers,
    )
    return tensor, 0 if raw is None else len(raw)


def _parsed(text: bytes) -> Mapping[str, Any]:
    try:
        return _object(json.loads(text, parse_constant=_no_number), "the request")
    except RecursionError:
        raise invalid("the request's JSON is nested too deeply") from None
    except ValueError as error:
        raise invalid(f"the request is not JSON: {error}") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number that JSON has")


def _parameters(item: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    return _object(item.get("parameters", _NO_PARAMETERS), f"the parameters of {what}")


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) and value is not _NO_PARAMETERS:
        raise invalid(f"{what}: expected a JSON object, found {shown(value, 40)}")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise invalid(f"{what}: expected a list, found {shown(value, 40)}")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise invalid(f"{what}: expected text, found {shown(value, 40)}")
    return value
