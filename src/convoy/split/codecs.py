"""What features travel as: floats, or bytes or half bytes of them, compressed.

    codec = feature_codec("uint4+zstd", shape=(8, 8, 8), low=entry.low, high=entry.high)
    payload = codec.encode(features)              # float32 [n, 8, 8, 8]
    codec.decode(payload, count=n)                # the same to within half a step

Bounds come from calibration, so that an image's features travel the same whatever images are
beside them. A decoder knows how many bytes there have to be before it makes room for them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import zstandard
from numpy.typing import NDArray

from convoy.errors import CodecError, UnknownNameError

FloatArray = NDArray[np.float32]
FEATURE_CODECS = ("float32", "float16", "uint8", "uint8+zstd", "uint4+zstd")
LEVEL = 1
"""Of zstd: higher ones take ten times as long, for a few percent."""


class Codec(Protocol):
    """A way for a batch to travel."""

    @property
    def name(self) -> str:
        """As manifests and requests have it."""

    def encode(self, batch: Any) -> bytes:
        """A batch as bytes."""

    def decode(self, payload: bytes, count: int) -> FloatArray:
        """What `encode` was given, as the network takes it: `count` rows. Raises CodecError."""


class Zstd(threading.local):
    """A compressor and a decompressor for each thread: neither may be used by two."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_ZSTD = Zstd()


@dataclass(frozen=True, kw_only=True)
class Floats:
    """As they are, or with half the bits."""

    name: str
    shape: tuple[int, ...]
    dtype: Any

    def encode(self, batch: FloatArray) -> bytes:
        """float32 [n, *shape]."""
        return np.ascontiguousarray(batch, self.dtype).tobytes()

    def decode(self, payload: bytes, count: int) -> FloatArray:
        """float32 [count, *shape]. Raises CodecError."""
        size = np.dtype(self.dtype).itemsize
        _check_length(self.name, len(payload), count * math.prod(self.shape) * size)
        values = np.frombuffer(payload, self.dtype).reshape(count, *self.shape)
        decoded: FloatArray = values.astype(np.float32, copy=False)
        if not np.isfinite(decoded).all():
            raise CodecError(f"{self.name}: values that are not finite")
        return decoded


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """Each channel's range in 255 or 15 equal steps: q = round((x - low) / step)."""

    name: str
    shape: tuple[int, ...]
    low: FloatArray
    """By channel, to be broadcast."""
    step: FloatArray
    bits: int
    is_compressed: bool

    def encode(self, batch: FloatArray) -> bytes:
        """float32 [n, *shape]; values beyond a channel's range become its nearest end."""
        most = (1 << self.bits) - 1
        scaled = (batch - self.low) * (1 / self.step)
        np.rint(scaled, out=scaled)
        np.clip(scaled, 0, most, out=scaled)
        values = scaled.astype(np.uint8).reshape(-1)
        data = _halved(values).tobytes() if self.bits == 4 else values.tobytes()
        return _ZSTD.compressor.compress(data) if self.is_compressed else data

    def decode(self, payload: bytes, count: int) -> FloatArray:
        """float32 [count, *shape]. Raises CodecError."""
        elements = count * math.prod(self.shape)
        size = (elements * self.bits + 7) // 8
        data = decompressed(self.name, payload, size) if self.is_compressed else payload
        _check_length(self.name, len(data), size)
        values = np.frombuffer(data, np.uint8)
        if self.bits == 4:
            values = np.stack((values >> 4, values & 15), axis=-1).reshape(-1)[:elements]
        decoded: FloatArray = values.reshape(count, *self.shape).astype(np.float32)
        decoded *= self.step
        decoded += self.low
        return decoded


def feature_codec(
    name: str, *, shape: Sequence[int], low: Sequence[float] = (), high: Sequence[float] = ()
) -> Codec:
    """The codec of that name for tensors of `shape`.

    Args:
        shape: of one image.
        low, high: each channel's range, or one for all; only where values are quantised.

    Raises:
        UnknownNameError: no codec of features is called so.
    """
    if name in ("float32", "float16"):
        return Floats(name=name, shape=tuple(shape), dtype=np.dtype(name).newbyteorder("<"))
    if name not in FEATURE_CODECS:
        raise UnknownNameError("codec", name, FEATURE_CODECS)
    bits = 4 if name.startswith("uint4") else 8
    least, most = np.asarray(low, np.float32), np.asarray(high, np.float32)
    span = np.where(most > least, most - least, np.float32(1))  # a channel that is always alike
    column = (-1,) + (1,) * (len(shape) - 1)
    return Quantised(
        name=name,
        shape=tuple(shape),
        low=least.reshape(column),
        step=(span / ((1 << bits) - 1)).astype(np.float32).reshape(column),
        bits=bits,
        is_compressed=name.endswith("+zstd"),
    )


def decompressed(name: str, payload: bytes, size: int) -> bytes:
    """What zstd made of `size` bytes, which is looked at before room is made. Raises CodecError."""
    try:
        announced = zstandard.frame_content_size(payload)
        if announced != size:
            said = "does not say how many" if announced < 0 else f"says {announced}"
            raise CodecError(f"{name}: expected {size} bytes within; the frame {said}")
        data: bytes = _ZSTD.decompressor.decompress(payload, max_output_size=size)
    except zstandard.ZstdError as error:
        raise CodecError(f"{name}: not a frame of zstd ({error})") from None
    return data


def _halved(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two values below 16 in each byte, the first in its upper half."""
    pairs = np.zeros((len(values) + 1) // 2 * 2, np.uint8)
    pairs[: len(values)] = values
    packed: NDArray[np.uint8] = np.bitwise_or(np.left_shift(pairs[::2], np.uint8(4)), pairs[1::2])
    return packed


def _check_length(name: str, found: int, expected: int) -> None:
    if found != expected:
        raise CodecError(f"{name}: {found} bytes; expected {expected}")
