"""What the plan foresees of an exported folder's ways, timed on this machine with one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from convoy.split import sessions
from convoy.split.client.options import Options
from convoy.split.client.ways import Way, Ways, open_ways
from convoy.split.costs import LOCAL, NOTHING, PICTURE, SPLIT, Candidate, Curve
from convoy.split.making.timing import THOROUGH, Care, medians_s, rest_s, sizes_for
from convoy.split.manifest import read_model
from convoy.split.pictures import Pixels

FLOAT_BYTES = 4


def candidates_of_folder(
    folder: Path,
    pictures: Pixels,
    batch_size: int,
    names: Sequence[str] | None = None,
    care: Care = THOROUGH,
) -> list[Candidate]:
    """Every way that `convoy split run` could go, by its name there.

    Args:
        folder: what `convoy split export` made.
        pictures: real ones, uint8 [n, height, width, channels].
        batch_size: of which, and of one image, times are taken.
        names: these ways only; all of them without it.
        care: how long times are taken.

    Raises:
        ManifestError: the folder cannot be read.
    """
    options = Options(accuracy_within=100.0, batch_size=batch_size)
    ways = open_ways(folder, options, is_timed=False)
    sizes = sizes_for(batch_size)
    loaded: dict[str, sessions.Session] = {}
    wanted = [way for way in ways.all if names is None or way.name in names]
    works = [_works(way, ways, folder, loaded, pictures, size) for way in wanted for size in sizes]
    seconds = iter(medians_s([work for each in works for work in each], care))
    taken = [[next(seconds) for _ in each] for each in works]
    found = []
    for number, way in enumerate(wanted):
        of_way = slice(number * len(sizes), (number + 1) * len(sizes))
        edge_s, *cloud_s = zip(*taken[of_way], strict=True)
        rest = [rest_s(work, care) for work in works[of_way][0]]
        found.append(
            Candidate(
                name=way.name,
                kind=LOCAL if way.is_edge else SPLIT if way.entry else PICTURE,
                variant=way.variant.name,
                cut=way.entry.cut if way.entry else None,
                codec=None if way.is_edge else way.codec.name,
                edge_s=Curve(sizes=sizes, values=edge_s),
                sent_bytes=_sent(way, ways, pictures, sizes),
                cloud_s=Curve(sizes=sizes, values=cloud_s[0]) if cloud_s else NOTHING,
                answer_bytes=Curve(
                    sizes=(1,), values=(float(FLOAT_BYTES * ways.manifest.output.elements),)
                ),
                edge_rest_s=rest[0],
                cloud_rest_s=sum(rest[1:]),
                accuracy=way.accuracy,
            )
        )
    return found


def _works(
    way: Way,
    ways: Ways,
    folder: Path,
    loaded: dict[str, sessions.Session],
    pictures: Pixels,
    count: int,
) -> list[Callable[[], Any]]:
    """What the edge does with so many pictures, and what the cloud does with what is sent."""
    by, pixels = ways.preprocessing, np.resize(pictures, (count, *pictures.shape[1:]))
    on_edge = partial(way.prepare, pixels, by)
    if way.is_edge:
        return [on_edge]
    payload = on_edge()
    assert isinstance(payload, bytes)
    file = way.entry.cloud if way.entry else way.variant.whole
    if file.file not in loaded:
        loaded[file.file] = sessions.load(read_model(folder, file), file.file)
    session = loaded[file.file]
    return [on_edge, lambda: session(way.codec.decode(payload, count))]


def _sent(way: Way, ways: Ways, pictures: Pixels, sizes: Sequence[int]) -> Curve:
    if way.is_edge:
        return NOTHING
    batches = [np.resize(pictures, (size, *pictures.shape[1:])) for size in sizes]
    values = tuple(float(len(way.encoded(batch, ways.preprocessing))) for batch in batches)
    return Curve(sizes=tuple(sizes), values=values)
