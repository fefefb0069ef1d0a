"""What a decoder sees in each way that an exported folder has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convoy.datasets import DataSet, ImageData
from convoy.errors import UsageError
from convoy.split.client.options import Options
from convoy.split.client.ways import Way, Ways, open_ways
from convoy.split.codecs import FloatArray
from convoy.split.making.images import batches, pixels_of, spread
from convoy.split.messages import PLAIN
from convoy.split.pictures import Pixels
from convoy.split.privacy.decoder import made_by, trained
from convoy.split.privacy.similarity import psnr, ssim

SENT_TOGETHER = 100
SHOWN = 8
"""Pictures on the contact sheet."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Of one way."""

    way: str
    bytes_per_image: float
    accuracy: float | None
    ssim: float
    """The mean over held-out pictures: 1 is the picture itself."""
    psnr_db: float
    """Of all their pixels together; infinite where every picture is exactly itself."""
    shown: Pixels
    """Some of them as a decoder makes them, uint8 [n, height, width, channels]."""


def judge(
    folder: Path,
    data: DataSet,
    names: Sequence[str] | None,
    *,
    images: int,
    epochs: int,
    watch: Callable[[str], None],
) -> tuple[Pixels, list[Seen], tuple[int, int]]:
    """Some held-out pictures, what is seen in each way, and how many were learnt from and judged.

    Args:
        folder: what `convoy split export` made.
        data: pictures of the kind that it was trained on.
        names: of ways; all that send something without it.
        images: training pictures that a decoder learns from; a fifth as many test pictures judge.
        epochs: how often it sees them.
        watch: is told which way comes next.

    Raises:
        UsageError: the data set is of other pictures, or a way is not there.
    """
    ways = open_ways(folder, Options(accuracy_within=100.0, batch_size=SENT_TOGETHER))
    by = ways.preprocessing
    if data.test.image_shape != (by.channels, by.height, by.width):
        raise UsageError(
            f"{folder} takes {by.channels}x{by.height}x{by.width} images; {data.name} has "
            f"{'x'.join(map(str, data.test.image_shape))}"
        )
    wanted = [ways.named(name) for name in names] if names else _sending(ways)
    for way in wanted:
        if way.is_edge:
            raise UsageError(f"way {way.name!r} sends nothing: there is nothing to be seen in it")
    learnt = _pixels(data.train, images, ways)
    held_out = _pixels(data.test, max(SHOWN, images // 5), ways)
    found = []
    for way in wanted:
        watch(way.name)
        found.append(_seen(way, ways, learnt, held_out, epochs))
    return held_out[:SHOWN], found, (len(learnt), len(held_out))


def _sending(ways: Ways) -> list[Way]:
    """Every way that sends something; of pictures as they are, one form stands for all."""
    pixels = (PLAIN,)
    return [
        way
        for way in ways.all
        if not way.is_edge and (way.entry is not None or way.codec.name not in pixels)
    ]


def _pixels(data: ImageData, count: int, ways: Ways) -> Pixels:
    chosen = spread(count, len(data))
    parts = [pixels_of(b.images, ways.preprocessing) for b in batches(data, chosen, SENT_TOGETHER)]
    return np.concatenate(parts)


def _seen(way: Way, ways: Ways, learnt: Pixels, held_out: Pixels, epochs: int) -> Seen:
    wanted = _tensor(held_out)
    if way.entry is None:  # a picture: nothing has to be learnt
        made = _tensor(np.concatenate([*_pictures(way, ways, held_out)]))
    else:
        decoder = trained(_features(way, ways, learnt), _tensor(learnt), epochs=epochs)
        made = made_by(decoder, _features(way, ways, held_out))
    shown = (made[:SHOWN] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return Seen(
        way=way.name,
        bytes_per_image=way.sent_bytes(SENT_TOGETHER) / SENT_TOGETHER,
        accuracy=way.accuracy,
        ssim=float(ssim(made, wanted).mean()),
        psnr_db=float(psnr(made.flatten()[None], wanted.flatten()[None])),
        shown=np.ascontiguousarray(shown),
    )


def _pictures(way: Way, ways: Ways, pixels: Pixels) -> Iterator[Pixels]:
    """As they arrive."""
    for part in _parts(pixels):
        payload = way.prepare(part, ways.preprocessing)
        yield way.codec.pixels(payload, len(part)) if way.sends_pixels else part


def _features(way: Way, ways: Ways, pixels: Pixels) -> Tensor:
    """As they arrive, decoded."""
    found: list[FloatArray] = []
    for part in _parts(pixels):
        payload = way.prepare(part, ways.preprocessing)
        found.append(way.codec.decode(payload, len(part)))
    return torch.from_numpy(np.concatenate(found))


def _parts(pixels: Pixels) -> Iterator[Pixels]:
    for first in range(0, len(pixels), SENT_TOGETHER):
        yield pixels[first : first + SENT_TOGETHER]


def _tensor(pixels: Pixels) -> Tensor:
    """float32 [n, channels, height, width], of 0 to 1."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float() / 255
