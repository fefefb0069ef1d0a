"""What the plan foresees of an exported folder's ways, timed on this machine with one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from convoy.split import sessions
from convoy.split.client.options import Options
from convoy.split.client.ways import Way, Ways, open_ways
from convoy.split.costs import LOCAL, PICTURE, SPLIT, Candidate, Curve
from convoy.split.making.timing import median_s, rest_s, sizes_for
from convoy.split.manifest import Preprocessing, read_model
from convoy.split.pictures import Pixels

FLOAT_BYTES = 4


def candidates_of_folder(folder: Path, pictures: Pixels, batch_size: int) -> Iterator[Candidate]:
    """Every way that `convoy split run` could go, by its name there.

    Args:
        folder: what `convoy split export` made.
        pictures: real ones, uint8 [n, height, width, channels].

    Raises:
        ManifestError: the folder cannot be read.
    """
    ways = open_ways(folder, Options(accuracy_within=100.0, batch_size=batch_size))
    sizes = sizes_for(batch_size)
    for way in ways.all:
        edge_s, sent, cloud_s = [], [], []
        for size in sizes:
            pixels = np.resize(pictures, (size, *pictures.shape[1:]))
            edge_s.append(median_s(lambda w=way, p=pixels: w.prepare(p, ways.preprocessing)))  # type: ignore[misc]
            if not way.is_edge:
                payload = way.prepare(pixels, ways.preprocessing)
                assert isinstance(payload, bytes)
                sent.append(float(len(payload)))
                cloud_s.append(_cloud_s(way, folder, payload, size))
        yield Candidate(
            name=way.name,
            kind=LOCAL if way.is_edge else SPLIT if way.entry else PICTURE,
            variant=way.variant.name,
            cut=way.entry.cut if way.entry else None,
            codec=None if way.is_edge else way.codec.name,
            edge_s=Curve(sizes=sizes, values=tuple(edge_s)),
            sent_bytes=Curve(sizes=sizes, values=tuple(sent or [0.0] * len(sizes))),
            cloud_s=Curve(sizes=sizes, values=tuple(cloud_s or [0.0] * len(sizes))),
            answer_bytes=Curve(
                sizes=(1,), values=(float(FLOAT_BYTES * ways.manifest.output.elements),)
            ),
            edge_rest_s=_edge_rest_s(way, ways.preprocessing, pictures[:1]),
            cloud_rest_s=0.0 if way.is_edge else _cloud_rest_s(way, folder, ways, pictures[:1]),
            accuracy=way.accuracy,
        )


def _cloud_s(way: Way, folder: Path, payload: bytes, count: int) -> float:
    """Decoding and computing what was sent."""
    return median_s(_answering(way, folder, payload, count))


def _answering(way: Way, folder: Path, payload: bytes, count: int) -> Callable[[], Any]:
    file = way.entry.cloud if way.entry else way.variant.whole
    session = sessions.load(read_model(folder, file), file.file)
    return lambda: session(way.codec.decode(payload, count))


def _edge_rest_s(way: Way, by: Preprocessing, picture: Pixels) -> float:
    return rest_s(lambda: way.prepare(picture, by))


def _cloud_rest_s(way: Way, folder: Path, ways: Ways, picture: Pixels) -> float:
    payload = way.prepare(picture, ways.preprocessing)
    assert isinstance(payload, bytes)
    return rest_s(_answering(way, folder, payload, 1))
