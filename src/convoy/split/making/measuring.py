"""What it takes to send something, and what a network makes of it at the other end.

Everything goes the whole way: through the first half, the codec, its decoder and the second half.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from convoy.split.codecs import FEATURE_CODECS, Codec, FloatArray, feature_codec
from convoy.split.making.images import Batch, pixels_of
from convoy.split.manifest import CodecFacts, Preprocessing
from convoy.split.pictures import PICTURE_CODECS, PictureCodec, picture_codec
from convoy.split.sessions import Session

JUDGING_BATCH = 100
"""Images that are sent together; a mosaic of them has one JPEG header."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The range of each channel of what crosses a cut."""

    low: tuple[float, ...]
    high: tuple[float, ...]


def calibrated(edge: Session, batches: Iterable[Batch]) -> Bounds:
    """The least and the largest value of each channel over some images.

    Where a rectifier's zeros are the least, they are the lower bound itself, and travel as zeros.
    """
    low: FloatArray | None = None
    high: FloatArray | None = None
    for batch in batches:
        features = edge(batch.images)
        apart = tuple(axis for axis in range(features.ndim) if axis != 1)
        least, most = features.min(axis=apart), features.max(axis=apart)
        low = least if low is None else np.minimum(low, least)
        high = most if high is None else np.maximum(high, most)
    assert low is not None, "there are images"
    assert high is not None, "there are images"
    # -0.0 + 0.0 is 0.0
    return Bounds(low=tuple((low + 0.0).tolist()), high=tuple((high + 0.0).tolist()))


@dataclass(kw_only=True)
class Tally:
    """What is added up of one codec."""

    sent_bytes: int = 0
    images: int = 0
    correct: int = 0

    def add(self, payload: bytes, logits: FloatArray, batch: Batch) -> None:
        """A batch that was sent."""
        self.sent_bytes += len(payload)
        self.images += len(batch.labels)
        self.correct += int((logits.argmax(axis=1) == batch.labels).sum())


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What was measured of all codecs of a place."""

    tallies: Mapping[str, Tally] = field(default_factory=dict)

    def facts(self, *, with_accuracy: bool) -> tuple[CodecFacts, ...]:
        """As a manifest has them."""
        return tuple(
            CodecFacts(
                name=name,
                bytes_per_image=tally.sent_bytes / tally.images,
                accuracy=tally.correct / tally.images if with_accuracy else None,
            )
            for name, tally in self.tallies.items()
        )


def feature_codecs(shape: tuple[int, ...], bounds: Bounds | None) -> dict[str, Codec]:
    """All codecs of a cut's features; where nothing is known of their range, floats only."""
    return {
        name: feature_codec(
            name,
            shape=shape,
            low=bounds.low if bounds else (),
            high=bounds.high if bounds else (),
        )
        for name in FEATURE_CODECS
        if bounds or name.startswith("float")
    }


def judge_features(
    edge: Session, cloud: Session, codecs: Mapping[str, Codec], batches: Iterable[Batch]
) -> Judged:
    """Send the features of images through every codec."""
    found = Judged(tallies={name: Tally() for name in codecs})
    for batch in batches:
        features = edge(batch.images)
        received, logits = features, cloud(features)
        for name, codec in codecs.items():
            payload = codec.encode(features)
            decoded = codec.decode(payload, len(features))
            if not np.array_equal(decoded, received):  # else as what was decoded before
                received, logits = decoded, cloud(decoded)
            found.tallies[name].add(payload, logits, batch)
    return found


def picture_codecs(preprocessing: Preprocessing | None) -> dict[str, PictureCodec]:
    """All codecs of pictures but for float32, which is one of tensors."""
    if preprocessing is None:
        return {}
    return {name: picture_codec(name, preprocessing) for name in PICTURE_CODECS[1:]}


def judge_pictures(
    whole: Session, preprocessing: Preprocessing | None, batches: Iterable[Batch]
) -> Judged:
    """Send images as float32, and as pixels in every way there is."""
    codecs = picture_codecs(preprocessing)
    found = Judged(tallies={name: Tally() for name in ("float32", *codecs)})
    for batch in batches:
        count = len(batch.labels)
        plain = batch.images.tobytes()
        found.tallies["float32"].add(plain, whole(batch.images), batch)
        if preprocessing is None:
            continue
        pixels = pixels_of(batch.images, preprocessing)
        for name, codec in codecs.items():
            payload = codec.encode(pixels)
            found.tallies[name].add(payload, whole(codec.decode(payload, count)), batch)
    return found
