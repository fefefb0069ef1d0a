"""Features as they travel: near enough to what they were, and never larger than was said."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from convoy.errors import CodecError, UnknownNameError
from convoy.split.codecs import FEATURE_CODECS, feature_codec

LOW, HIGH = (0.0, -1.0, 2.0), (1.0, 3.0, 2.0)
SHAPE = (3, 2, 5)
STEPS = {"uint8": 255, "uint8+zstd": 255, "uint4+zstd": 15}


def features(count: int, seed: int = 0) -> np.ndarray:
    """Within the bounds."""
    draw = np.random.default_rng(seed).uniform(size=(count, *SHAPE))
    low, high = (np.reshape(bound, (3, 1, 1)) for bound in (LOW, HIGH))
    return (low + draw * (high - low)).astype(np.float32)


@pytest.mark.parametrize("name", FEATURE_CODECS)
@pytest.mark.parametrize("count", [1, 7])
def test_what_comes_back_is_within_half_a_step(name: str, count: int) -> None:
    codec = feature_codec(name, shape=SHAPE, low=LOW, high=HIGH)
    sent = features(count)
    back = codec.decode(codec.encode(sent), count)
    assert back.shape == sent.shape
    assert back.dtype == np.float32
    if name == "float32":
        assert np.array_equal(back, sent)
    elif name == "float16":
        np.testing.assert_allclose(back, sent, rtol=2**-11, atol=2**-24)
    else:
        step = (np.subtract(HIGH, LOW) / STEPS[name]).reshape(3, 1, 1)
        assert (np.abs(back - sent) <= step / 2 + 1e-6).all()


def test_both_ends_of_a_range_and_zero_are_exact() -> None:
    codec = feature_codec("uint4+zstd", shape=(1, 1, 3), low=(0.0,), high=(7.5,))
    sent = np.float32([[[[0.0, 7.5, 0.5]]]])
    assert np.array_equal(codec.decode(codec.encode(sent), 1), sent)


def test_what_is_beyond_a_range_becomes_its_end() -> None:
    codec = feature_codec("uint8", shape=(1, 1, 2), low=(0.0,), high=(1.0,))
    back = codec.decode(codec.encode(np.float32([[[[-5.0, 9.0]]]])), 1)
    assert back.ravel().tolist() == [0.0, 1.0]


def test_an_image_travels_the_same_whoever_is_beside_it() -> None:
    codec = feature_codec("uint4+zstd", shape=SHAPE, low=LOW, high=HIGH)
    sent = features(6)
    together = codec.decode(codec.encode(sent), 6)
    alone = np.concatenate([codec.decode(codec.encode(row[None]), 1) for row in sent])
    assert np.array_equal(together, alone)


@pytest.mark.parametrize(("name", "size"), [("float32", 120), ("float16", 60), ("uint8", 30)])
def test_bytes_that_are_not_compressed_are_counted(name: str, size: int) -> None:
    codec = feature_codec(name, shape=SHAPE, low=LOW, high=HIGH)
    assert len(codec.encode(features(4))) == 4 * size


def test_four_bits_and_an_odd_number_of_values() -> None:
    codec = feature_codec("uint4+zstd", shape=(1, 1, 3), low=(0.0,), high=(15.0,))
    sent = np.arange(3, dtype=np.float32).reshape(1, 1, 1, 3) + 5
    payload = codec.encode(sent)
    assert zstandard.ZstdDecompressor().decompress(payload) == bytes([0x56, 0x70])
    assert np.array_equal(codec.decode(payload, 1), sent)


@pytest.mark.parametrize("name", FEATURE_CODECS)
@given(payload=st.binary(max_size=200), count=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_rubbish_is_refused_or_as_long_as_it_was_said_to_be(
    name: str, payload: bytes, count: int
) -> None:
    codec = feature_codec(name, shape=SHAPE, low=LOW, high=HIGH)
    try:
        back = codec.decode(payload, count)
    except CodecError:
        return
    assert back.shape == (count, *SHAPE)
    assert np.isfinite(back).all()


def test_a_bomb_is_refused_before_room_is_made_for_it() -> None:
    codec = feature_codec("uint8+zstd", shape=SHAPE, low=LOW, high=HIGH)
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 28))
    with pytest.raises(CodecError, match=r"expected 30 bytes within; the frame says 268435456"):
        codec.decode(bomb, 1)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(30))
    with pytest.raises(CodecError, match="does not say how many"):
        codec.decode(unsized, 1)


@given(
    values=npst.arrays(
        np.float32, (2, 1, 1, 4), elements=st.floats(-(2.0**100), 2.0**100, width=32)
    )
)
@settings(max_examples=50, deadline=None)
def test_huge_values_travel_as_the_ends_of_the_range(values: np.ndarray) -> None:
    codec = feature_codec("uint8+zstd", shape=(1, 1, 4), low=(-1.0,), high=(1.0,))
    back = codec.decode(codec.encode(values), 2)
    np.testing.assert_allclose(back, np.clip(values, -1, 1), atol=1 / 255 + 1e-6)


def test_floats_that_are_not_finite_are_refused() -> None:
    codec = feature_codec("float32", shape=(1, 1, 1))
    with pytest.raises(CodecError, match="not finite"):
        codec.decode(np.float32([np.nan]).tobytes(), 1)


def test_a_codec_that_is_not_there() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown codec 'uint2'. Nearest: uint8"):
        feature_codec("uint2", shape=SHAPE)
