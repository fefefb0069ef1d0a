"""The ways a batch can take: all on the edge, as pictures, or as features of a cut.

edge                 the whole network here
picture/jpeg         the whole network there
pool2/uint4+zstd     its first half here, its second there
pool2:8/uint8        the same of a network with 8 filters at that cut
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from convoy.errors import ManifestError, UnknownNameError
from convoy.split import sessions
from convoy.split.client.options import Options
from convoy.split.codecs import FloatArray, feature_codec
from convoy.split.costs import NOTHING, Curve
from convoy.split.manifest import (
    CodecFacts,
    CutEntry,
    Manifest,
    ModelFile,
    Preprocessing,
    Variant,
    load,
    read_model,
    read_samples,
    way_name,
)
from convoy.split.messages import PLAIN, Address
from convoy.split.pictures import Pixels, normalised, picture_codec

TIMED = 3
"""How often a way is timed when the client starts; the quickest counts."""
FADE_S = 30.0
"""After so long, what was found of a way that has not been gone since counts half."""
FIRST_AVOIDED_S, LONGEST_AVOIDED_S = 0.25, 60.0
"""How long a way is not gone after it failed: at first, and after it has failed again and again."""
TINY = 1e-9
"""A rounding error of an accuracy."""
NEW = 0.2
"""How much a new figure counts against those before."""


@dataclass(kw_only=True, eq=False)
class Way:
    """One of them, and what is known of it."""

    name: str
    variant: Variant
    accuracy: float | None
    here: ModelFile | None = None
    """The part that is computed here; None: nothing is."""
    session: sessions.Session | None = None
    """Of that, once it is loaded."""
    codec: Any = None
    address: Address | None = None
    """Whom to ask; None: nobody."""
    sends_pixels: bool = False
    """What the codec takes: pixels, or a tensor."""
    entry: CutEntry | None = None
    shape: tuple[int, ...] = ()
    """Of the tensor that the model there takes, for one image."""
    refused_until: float = float("-inf")
    """The server does not take it before then."""
    timed: Curve = NOTHING
    """Seconds on the edge by batch size, as they were when the client started."""
    correction: float = 1.0
    """What it has been found to take since, by what was timed."""
    sent: Curve = NOTHING
    """Bytes by batch size, as they were when the client started."""
    sent_correction: float = 1.0
    """What has been sent since, by that."""
    server_image_s: float | None = None
    """What the server is at work for an image; None: this way has not been gone yet."""
    noted: float = 0.0
    """When it was last gone."""
    avoid_s: float = FIRST_AVOIDED_S
    """How long it is not gone after its next failure."""

    @property
    def is_edge(self) -> bool:
        """Whether nothing is sent."""
        return self.address is None

    def prepare(self, pixels: Pixels, by: Preprocessing) -> FloatArray | bytes:
        """What the edge does: logits where it does all, otherwise what is to be sent."""
        began = time.perf_counter()
        result = self.computed(pixels, by) if self.is_edge else self.encoded(pixels, by)
        now = time.perf_counter()
        self.noted, foreseen = now, self.timed(len(pixels))
        if foreseen > 0:
            off = (now - began) / (foreseen * self.correction)
            self.correction *= min(max(off, 0.1), 10.0) ** NEW
        if isinstance(result, bytes) and (usual := self.sent(len(pixels))):
            self.sent_correction *= (len(result) / (usual * self.sent_correction)) ** NEW
        return result

    def encoded(self, pixels: Pixels, by: Preprocessing) -> bytes:
        """What is to be sent of pictures."""
        what = pixels if self.sends_pixels else self.computed(pixels, by)
        payload: bytes = self.codec.encode(what)
        return payload

    def computed(self, pixels: Pixels, by: Preprocessing) -> FloatArray:
        """What pictures become on the edge: at the least, normalised."""
        tensor = normalised(pixels, by)
        return tensor if self.session is None else self.session(tensor)

    def sent_bytes(self, count: int) -> float:
        """Of a batch of so many images."""
        found: float = self.sent(count) * self.sent_correction
        return found

    def edge_s(self, count: int, now: float) -> float:
        """Seconds on the edge for so many images; what was found long ago counts less and less."""
        found: float = self.timed(count) * self.correction ** self._fade(now)
        return found

    def server_s(self, count: int, now: float) -> float | None:
        """Likewise on the server; a server that has not been asked for long is thought faster."""
        if self.server_image_s is None:
            return None
        return self.server_image_s * count * self._fade(now)

    def _fade(self, now: float) -> float:
        faded: float = 0.5 ** (max(0.0, now - self.noted) / FADE_S)
        return faded

    def answered(self, computing_s: float, count: int) -> None:
        """An answer came, for which the server was at work so long."""
        each, before = computing_s / count, self.server_image_s
        self.server_image_s = each if before is None else before + NEW * (each - before)
        self.avoid_s = FIRST_AVOIDED_S

    def avoid(self, now: float, least_s: float = 0.0) -> float:
        """It failed: not gone for a while, and for twice as long the next time; how long."""
        seconds = max(self.avoid_s, least_s)
        self.refused_until = max(self.refused_until, now + seconds)
        self.avoid_s = min(2 * self.avoid_s, LONGEST_AVOIDED_S)
        return seconds


@dataclass(kw_only=True)
class Ways:
    """All that an exported folder allows, within an accuracy; the edge's own first."""

    manifest: Manifest
    preprocessing: Preprocessing
    all: list[Way] = field(default_factory=list)

    @property
    def edge(self) -> Way:
        """All of a network on the edge: the fastest that is accurate enough."""
        return min((way for way in self.all if way.is_edge), key=lambda way: way.timed(1))

    def named(self, name: str) -> Way:
        """The way of that name. Raises UnknownNameError."""
        known = {way.name: way for way in self.all}
        if name not in known:
            raise UnknownNameError("way", name, known)
        return known[name]

    def load(self, folder: Path, threads: int) -> None:
        """Load what the edge computes. Raises ManifestError."""
        loaded: dict[str, sessions.Session] = {}
        for way in self.all:
            if way.here is not None:
                file = way.here.file
                if file not in loaded:
                    model = read_model(folder, way.here)
                    loaded[file] = sessions.load(model, file, threads=threads)
                way.session = loaded[file]

    def time(self, batch_size: int, samples: Pixels | None) -> None:
        """Measure on this machine what each way takes of it, and what it sends, for such batches.

        Args:
            samples: real pictures; noise, for which codecs take longer, where there are none.
        """
        by, is_real = self.preprocessing, samples is not None
        if samples is None:
            shape = (batch_size, by.height, by.width, by.channels)
            samples = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        sizes = sorted({1, batch_size})
        batches = {size: np.resize(samples, (size, *samples.shape[1:])) for size in sizes}
        computed: dict[tuple[int, int], tuple[float, Any]] = {}
        for way in self.all:
            seconds, sent = [], []
            for size, pixels in batches.items():
                key = id(way.session), size  # what several codecs encode is computed once
                if not way.sends_pixels and key not in computed:
                    computed[key] = _tried(partial(way.computed, pixels, by))
                took_s, what = (0.0, pixels) if way.sends_pixels else computed[key]
                if not way.is_edge:
                    encoding_s, payload = _tried(partial(way.codec.encode, what))
                    took_s += encoding_s
                    sent.append(float(len(payload)))
                seconds.append(took_s)
            way.timed = Curve(sizes=tuple(sizes), values=tuple(seconds))
            if is_real and not way.is_edge:
                way.sent = Curve(sizes=tuple(sizes), values=tuple(sent))


def _tried(work: Callable[[], Any]) -> tuple[float, Any]:
    """The least seconds of a few tries, and what came of it."""
    seconds = []
    for _ in range(TIMED):
        began = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - began)
    return min(seconds), found


def open_ways(folder: Path, options: Options, *, is_timed: bool = True) -> Ways:
    """Load what an exported folder has for the edge.

    Args:
        folder: what `convoy split export` made.
        options: which ways are wanted, and for what.
        is_timed: find out what each takes here.

    Raises:
        ManifestError: it cannot be read, or files are not those it speaks of.
        UnknownNameError: the way that was asked for is not among them.
    """
    manifest = load(folder)
    if manifest.preprocessing is None:
        raise ManifestError(
            f"{folder} was exported from a model whose pictures nobody has described: no "
            "preprocessing in its manifest. Export from a run, or write it into manifest.json"
        )
    ways = Ways(manifest=manifest, preprocessing=manifest.preprocessing)
    ways.all = [way for v in manifest.variants for way in _ways_of(manifest, v)]
    whole = manifest.variants[0].accuracy
    if options.way is not None:
        asked = ways.named(options.way)
        ways.all = [w for w in ways.all if w is asked or (w.is_edge and w.variant is asked.variant)]
    elif whole is not None:
        least = whole - options.accuracy_within / 100
        ways.all = [w for w in ways.all if w.accuracy is not None and w.accuracy >= least - TINY]
    ways.load(folder, options.threads)
    if is_timed:
        ways.time(options.batch_size, read_samples(folder, manifest))
    return ways


def _ways_of(manifest: Manifest, variant: Variant) -> Iterator[Way]:
    alone = way_name(variant.name, None, None)
    by = manifest.preprocessing
    assert by is not None
    yield Way(name=alone, variant=variant, accuracy=variant.accuracy, here=variant.whole)
    address = Address(
        model=variant.model,
        version=variant.version,
        sha256=variant.whole.sha256,
        input=manifest.input.name,
        read_by=by.digest,
    )
    for facts in variant.codecs:
        plain = facts.name == PLAIN
        yield Way(
            name=way_name(variant.name, None, facts.name),
            variant=variant,
            accuracy=facts.accuracy,
            codec=feature_codec(PLAIN, shape=manifest.input.shape)
            if plain
            else picture_codec(facts.name, by),
            sends_pixels=not plain,
            address=address,
            shape=manifest.input.shape,
            sent=_exported(facts),
        )
    for entry in variant.cuts:
        yield from _ways_of_cut(variant, entry)


def _exported(facts: CodecFacts) -> Curve:
    """Bytes as they were found when it was exported, in larger batches perhaps."""
    return Curve(sizes=(1,), values=(facts.bytes_per_image,))


def _ways_of_cut(variant: Variant, entry: CutEntry) -> Iterator[Way]:
    address = Address(
        model=entry.model,
        version=entry.version,
        sha256=entry.cloud.sha256,
        input=entry.features.name,
        read_by=entry.digest,
    )
    for facts in entry.codecs:
        yield Way(
            name=way_name(variant.name, entry.cut, facts.name),
            variant=variant,
            accuracy=facts.accuracy,
            here=entry.edge,
            codec=feature_codec(
                facts.name, shape=entry.features.shape, low=entry.low, high=entry.high
            ),
            address=address,
            shape=entry.features.shape,
            entry=entry,
            sent=_exported(facts),
        )
