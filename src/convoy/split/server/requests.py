"""What came in, whichever protocol brought it: checked, then decoded into the network's input.

Sizes are compared before memory is made. Whatever is wrong is a `RefusedError` that names the
thing, what was found and what was expected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convoy.errors import CodecError, describe_unknown
from convoy.split.codecs import Codec, FloatArray
from convoy.split.messages import CODEC, COUNT, PLAIN, READ_BY
from convoy.split.server.refusals import RefusedError, Status, invalid, shown
from convoy.split.server.repository import Model, Repository

Buffer = bytes | memoryview
Numbers = Sequence[Any] | FloatArray
EXPANSION = 4
"""A request's float32 input may be so many times as large as the largest message."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input as a client describes it; nothing of it is known to be true."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    codec: object = None
    """The parameter of that name; None where there is none."""
    count: object = None
    read_by: object = None
    raw: Buffer | None = None
    """Its bytes, little-endian, where it came as bytes."""
    numbers: Numbers | None = None
    """Its numbers, where it came as numbers."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A request, translated out of its protocol."""

    model: str
    version: str
    """Empty: the newest."""
    sha256: object = None
    id: str = ""
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...] = ()
    """Asked for by name; all where none is."""
    is_binary: bool = False
    """Over HTTP: whether the answer's numbers are to be bytes."""


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """An input whose description is consistent; its content has not been looked at."""

    codec: Codec
    payload: Buffer | None
    numbers: Numbers | None
    count: int
    shape: tuple[int, ...]
    """Of one image."""

    @property
    def decoded_bytes(self) -> int:
        """As float32."""
        return 4 * self.count * math.prod(self.shape)


def model_for(question: Question, repository: Repository) -> Model:
    """The model that a question is for.

    Raises:
        RefusedError: there is none, or its file is not the one that the client speaks of.
    """
    model = repository.find(question.model, question.version)
    if question.sha256 is not None and question.sha256 != model.sha256:
        if not isinstance(question.sha256, str):
            raise invalid(f"the parameter sha256 is {shown(question.sha256)}; expected text")
        here = ", ".join(
            f"version {m.version} ({m.sha256[:12]}…)"
            + (", which is the client's" if m.sha256 == question.sha256 else "")
            for m in repository.versions(question.model).values()
        )
        raise RefusedError(
            Status.FAILED_PRECONDITION,
            f"model {model.name!r}, version {model.version}, is another file here than the "
            f"client's ({shown(question.sha256, 12)}). Here: {here}. Copy one exported folder to "
            "both sides",
        )
    return model


def parcel_of(question: Question, model: Model, *, most_bytes: int) -> Parcel:
    """The input of a question.

    Args:
        most_bytes: that it may have as float32.

    Raises:
        RefusedError: it is not what the model takes.
    """
    spec = model.input
    for name in question.outputs:
        if name != model.output.name:
            known = [model.output.name]
            raise invalid(describe_unknown(f"output of {model.name}", name[:100], known))
    if len(question.inputs) != 1:
        raise invalid(f"{len(question.inputs)} inputs; {model.name} takes one, {spec.name!r}")
    tensor = question.inputs[0]
    if tensor.name != spec.name:
        raise invalid(describe_unknown(f"input of {model.name}", tensor.name[:100], [spec.name]))
    parcel = _encoded(tensor, model) if tensor.datatype == "BYTES" else _plain(tensor, model)
    if parcel.decoded_bytes > most_bytes:
        most = most_bytes // model.image_bytes
        raise invalid(
            f"input {spec.name!r}: {parcel.count} images are {parcel.decoded_bytes} bytes as "
            f"float32, and this server takes {most_bytes} at once: send {most} at a time"
        )
    return parcel


def _plain(tensor: Tensor, model: Model) -> Parcel:
    spec = model.input
    if tensor.datatype != "FP32":
        known = ", ".join(model.codecs)
        raise invalid(
            f"input {spec.name!r} is {shown(tensor.datatype, 20)}; expected FP32, or BYTES with "
            f"the parameters {CODEC} ({known}) and {COUNT}"
        )
    if tensor.codec is not None:
        raise invalid(
            f"input {spec.name!r} is FP32 and has the parameter {CODEC}; what a codec made is BYTES"
        )
    shape = tensor.shape
    if len(shape) != 1 + len(spec.shape) or shape[1:] != spec.shape or shape[0] < 1:
        expected = ", ".join(map(str, spec.shape))
        raise invalid(
            f"input {spec.name!r} has the shape {shown(list(shape))}; expected [images, {expected}]"
        )
    parcel = Parcel(
        codec=model.codecs[PLAIN],
        payload=tensor.raw,
        numbers=tensor.numbers,
        count=shape[0],
        shape=spec.shape,
    )
    if tensor.raw is not None and len(tensor.raw) != parcel.decoded_bytes:
        raise invalid(
            f"input {spec.name!r} has {len(tensor.raw)} bytes; expected {parcel.decoded_bytes} for "
            f"{list(shape)}"
        )
    if tensor.raw is None and tensor.numbers is None:
        raise invalid(f"input {spec.name!r} has no content")
    return parcel


def _encoded(tensor: Tensor, model: Model) -> Parcel:
    name = model.input.name
    if tensor.shape != (1,):
        raise invalid(
            f"input {name!r} is BYTES of the shape {shown(list(tensor.shape))}; expected [1], with "
            f"the number of images in the parameter {COUNT}"
        )
    if not isinstance(tensor.codec, str):
        known = ", ".join(model.codecs)
        raise invalid(f"input {name!r} is BYTES; expected the parameter {CODEC}: one of {known}")
    if tensor.codec not in model.codecs:
        raise invalid(describe_unknown(f"codec of {model.name}", tensor.codec[:100], model.codecs))
    if type(tensor.count) is not int or tensor.count < 1:
        raise invalid(
            f"input {name!r}: the parameter {COUNT} is {shown(tensor.count)}; expected the number "
            "of images, 1 or more"
        )
    if tensor.read_by is not None and tensor.read_by != model.read_by:
        raise RefusedError(
            Status.FAILED_PRECONDITION,
            f"model {model.name!r}, version {model.version}: what a codec makes is read here by "
            "other ranges, or pictures are prepared otherwise, than the client's manifest says "
            f"(the parameter {READ_BY} is {shown(tensor.read_by, 12)}, here it is "
            f"{shown(model.read_by, 12)}). Copy one exported folder to both sides",
        )
    raw = tensor.raw
    if raw is None:
        raise invalid(f"input {name!r} is BYTES and has no binary content")
    if len(raw) < 4 or int.from_bytes(raw[:4], "little") != len(raw) - 4:
        raise invalid(
            f"input {name!r} has {len(raw)} bytes; expected one element: four bytes that say, "
            "little-endian, how many follow, and as many"
        )
    return Parcel(
        codec=model.codecs[tensor.codec],
        payload=memoryview(raw)[4:],
        numbers=None,
        count=tensor.count,
        shape=model.input.shape,
    )


def decode(parcel: Parcel) -> FloatArray:
    """The network's input, float32 [count, ...], every number of it finite.

    Raises:
        RefusedError: its content is damaged, or not what its description says.
    """
    if parcel.payload is None:
        return _from_numbers(parcel)
    payload = parcel.payload if isinstance(parcel.payload, bytes) else bytes(parcel.payload)
    try:
        return parcel.codec.decode(payload, parcel.count)
    except CodecError as error:
        raise invalid(f"the input cannot be decoded: {error}") from None


def _from_numbers(parcel: Parcel) -> FloatArray:
    wanted = (parcel.count, *parcel.shape)
    found: np.ndarray[Any, Any]
    if isinstance(parcel.numbers, np.ndarray):
        found = parcel.numbers
    else:
        try:  # as what they are: an array of text would have room for the longest everywhere
            found = np.asarray(parcel.numbers, dtype=object)
        except ValueError:
            raise invalid("the input's numbers are lists of different lengths") from None
    if found.shape != wanted and found.shape != (math.prod(wanted),):
        raise invalid(
            f"the input's numbers have the shape {shown(list(found.shape))}; expected "
            f"{list(wanted)}, or flat, [{math.prod(wanted)}]"
        )
    if found.dtype == object and not set(map(type, found.flat)) <= {int, float}:
        raise invalid("the input's numbers are not all numbers that a float32 can hold")
    try:
        with np.errstate(over="ignore"):
            values = found.astype(np.float32).reshape(wanted)
    except OverflowError:  # an integer that no float holds
        raise invalid("the input's numbers are not all numbers that a float32 can hold") from None
    if not np.isfinite(values).all():
        raise invalid("the input has numbers that are not finite")
    return values
