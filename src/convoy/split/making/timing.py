"""What a network's parts take on this machine, with one thread: medians, at two batch sizes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from convoy.split.codecs import Codec, FloatArray
from convoy.split.costs import Curve
from convoy.split.making.images import pixels_of
from convoy.split.making.measuring import picture_codecs
from convoy.split.manifest import Preprocessing
from convoy.split.sessions import Session

LEAST_RUNS, MOST_RUNS = 3, 50
ENOUGH_S = 0.2
"""Of runs, beyond the least number of them."""
PAUSE_S = 0.002
"""Long enough for a processor to rest, as it does while it waits for an answer."""
OTHER_BYTES = 1 << 22
"""What other work is taken to use of the caches meanwhile."""
TOGETHER = 16
"""Images: a server computes those that wait together, and gains little by more."""
PATIENCE_S = 2.0
"""After this long even fewer than the least number of runs will do."""


@dataclass(frozen=True, kw_only=True)
class Care:
    """How long times are taken."""

    rounds: int = 5
    """Of turns."""
    enough_s: float = ENOUGH_S
    """Of runs, all rounds together."""


THOROUGH = Care()
QUICK = Care(rounds=2, enough_s=0.08)
"""Where times are taken again and again."""


@dataclass(frozen=True, kw_only=True)
class CodecTimes:
    """What sending something takes at either end, and how much there is to send."""

    encode_s: Curve
    decode_s: Curve
    sent_bytes: Curve


def median_s(
    work: Callable[[], Any],
    *,
    before: Callable[[], Any] = lambda: None,
    enough_s: float = ENOUGH_S,
) -> float:
    """Seconds of one of several runs, after one that does not count.

    Args:
        before: comes before each run, and does not count either.
        enough_s: of runs, beyond the least number of them.
    """
    work()
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < MOST_RUNS:
        before()
        start = time.perf_counter()
        work()
        now = time.perf_counter()
        times.append(now - start)
        spent = now - begun
        if spent > (enough_s if len(times) >= LEAST_RUNS else PATIENCE_S):
            break
    return statistics.median(times)


def medians_s(works: Sequence[Callable[[], Any]], care: Care = THOROUGH) -> list[float]:
    """Of each, in turns: whatever else the machine does meanwhile, it does to all of them."""
    enough_s = care.enough_s / care.rounds
    rounds = [[median_s(work, enough_s=enough_s) for work in works] for _ in range(care.rounds)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def rest_s(work: Callable[[], Any], care: Care = THOROUGH) -> float:
    """What a run takes more after a pause: a processor that has waited is slow at first."""
    other = np.zeros(OTHER_BYTES, np.uint8)

    def pause() -> None:
        other[::64] += 1
        time.sleep(PAUSE_S)

    rested_s = median_s(work, before=pause, enough_s=care.enough_s)
    return max(0.0, rested_s - median_s(work, enough_s=care.enough_s))


def sizes_for(batch_size: int) -> tuple[int, ...]:
    """Batch sizes to measure at: one image, and what is asked about.

    Or, where that is little, what a server that has much to do computes together.
    """
    return 1, max(batch_size, TOGETHER)


def session_times(
    sessions: Sequence[tuple[Session, FloatArray]], sizes: Sequence[int], care: Care = THOROUGH
) -> list[Curve]:
    """Of models by batch size, in turns.

    Args:
        sessions: each with inputs for it, at least as many as the largest size.
        sizes: of batches.
        care: how long times are taken.
    """
    works = [partial(session, inputs[:size]) for session, inputs in sessions for size in sizes]
    seconds = medians_s(works, care)
    starts = range(0, len(works), len(sizes))
    return [Curve(sizes=tuple(sizes), values=tuple(seconds[n : n + len(sizes)])) for n in starts]


def feature_times(
    codecs: Mapping[str, Codec], features: FloatArray, sizes: Sequence[int]
) -> dict[str, CodecTimes]:
    """Of every codec of a cut's features."""
    return {name: _codec_times(codec, features, sizes) for name, codec in codecs.items()}


def picture_times(
    preprocessing: Preprocessing | None,
    plain: Codec,
    images: FloatArray,
    sizes: Sequence[int],
) -> dict[str, CodecTimes]:
    """Of every codec of pictures, float32 among them."""
    found = {plain.name: _codec_times(plain, images, sizes)}
    if preprocessing is not None:
        pixels = pixels_of(images, preprocessing)
        for name, codec in picture_codecs(preprocessing).items():
            found[name] = _codec_times(codec, pixels, sizes)
    return found


def _codec_times(codec: Codec, batch: Any, sizes: Sequence[int]) -> CodecTimes:
    encode, decode, sent = [], [], []
    for size in sizes:
        part = batch[:size]
        payload = codec.encode(part)
        sent.append(float(len(payload)))
        encode.append(median_s(lambda part=part: codec.encode(part)))  # type: ignore[misc]
        decode.append(
            median_s(lambda payload=payload, size=size: codec.decode(payload, size))  # type: ignore[misc]
        )
    at = tuple(sizes)
    return CodecTimes(
        encode_s=Curve(sizes=at, values=tuple(encode)),
        decode_s=Curve(sizes=at, values=tuple(decode)),
        sent_bytes=Curve(sizes=at, values=tuple(sent)),
    )
