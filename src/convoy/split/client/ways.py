"""The ways a batch can take: all on the edge, as pictures, or as features of a cut.

edge                 the whole network here
picture/jpeg         the whole network there
pool2/uint4+zstd     its first half here, its second there
pool2:8/uint8        the same of a network with 8 filters at that cut
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convoy.errors import ManifestError, UnknownNameError
from convoy.split import sessions
from convoy.split.client.options import Options
from convoy.split.codecs import FloatArray, feature_codec
from convoy.split.manifest import (
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
"""How often a way is timed when the client starts."""
NEW = 0.2
"""How much a new figure counts against those before."""


@dataclass(kw_only=True, eq=False)
class Way:
    """One of them, and what is known of it. Figures are those of a whole batch."""

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
    edge_s: float = 0.0
    bytes_per_image: float = 0.0
    whole_s: float = 0.0
    """What all of this network takes on the edge."""
    server_s: float | None = None
    """None: this way has not been gone yet."""
    server_noted: float = 0.0
    """When that was."""

    @property
    def is_edge(self) -> bool:
        """Whether nothing is sent."""
        return self.address is None

    def prepare(self, pixels: Pixels, by: Preprocessing) -> FloatArray | bytes:
        """What the edge does: logits where it does all, otherwise what is to be sent."""
        began = time.perf_counter()
        result = self._computed(pixels, by) if self.is_edge else self.encoded(pixels, by)
        self.note_edge(time.perf_counter() - began, len(pixels), result)
        return result

    def encoded(self, pixels: Pixels, by: Preprocessing) -> bytes:
        """What is to be sent of pictures."""
        what = pixels if self.sends_pixels else self._computed(pixels, by)
        payload: bytes = self.codec.encode(what)
        return payload

    def _computed(self, pixels: Pixels, by: Preprocessing) -> FloatArray:
        tensor = normalised(pixels, by)
        return tensor if self.session is None else self.session(tensor)

    def note_edge(self, seconds: float, count: int, result: FloatArray | bytes) -> None:
        """What it took, for a batch of which size, and what came of it."""
        self.edge_s = self.edge_s + NEW * (seconds - self.edge_s) if self.edge_s else seconds
        if isinstance(result, bytes):
            self.bytes_per_image += NEW * (len(result) / count - self.bytes_per_image)

    def note_server(self, seconds: float, now: float) -> None:
        """What the server said that it took."""
        self.server_noted = now
        before = self.server_s
        self.server_s = seconds if before is None else before + NEW * (seconds - before)


@dataclass(kw_only=True)
class Ways:
    """All that an exported folder allows, within an accuracy; the edge's own first."""

    manifest: Manifest
    preprocessing: Preprocessing
    all: list[Way] = field(default_factory=list)

    @property
    def edge(self) -> Way:
        """All of a network on the edge: the fastest that is accurate enough."""
        return min((way for way in self.all if way.is_edge), key=lambda way: way.edge_s)

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
        """Measure on this machine what each way takes of it, for such batches.

        Args:
            samples: real pictures; noise, for which codecs take longer, where there are none.
        """
        by = self.preprocessing
        if samples is None:
            shape = (batch_size, by.height, by.width, by.channels)
            samples = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        pixels = np.resize(samples, (batch_size, *samples.shape[1:]))
        for way in self.all:
            known = way.bytes_per_image  # noise is not what will be sent
            taken = []
            for _ in range(TIMED):
                began = time.perf_counter()
                way.prepare(pixels, by)
                taken.append(time.perf_counter() - began)
            way.edge_s, way.bytes_per_image = float(np.median(taken)), known
        for way in self.all:
            whole = whole_of(self.all, way.variant)
            way.whole_s = whole.edge_s if whole is not None else 0.0


def open_ways(folder: Path, options: Options) -> Ways:
    """Load what an exported folder has for the edge.

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
        ways.all = [w for w in ways.all if w.accuracy is not None and w.accuracy >= least]
    ways.load(folder, options.threads)
    ways.time(options.batch_size, read_samples(folder, manifest))
    return ways


def _ways_of(manifest: Manifest, variant: Variant) -> Iterator[Way]:
    alone = way_name(variant.name, None, None)
    yield Way(name=alone, variant=variant, accuracy=variant.accuracy, here=variant.whole)
    address = Address(
        model=variant.model,
        version=variant.version,
        sha256=variant.whole.sha256,
        input=manifest.input.name,
    )
    by = manifest.preprocessing
    assert by is not None
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
            bytes_per_image=facts.bytes_per_image,
        )
    for entry in variant.cuts:
        yield from _ways_of_cut(variant, entry)


def _ways_of_cut(variant: Variant, entry: CutEntry) -> Iterator[Way]:
    address = Address(
        model=entry.model,
        version=entry.version,
        sha256=entry.cloud.sha256,
        input=entry.features.name,
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
            bytes_per_image=facts.bytes_per_image,
        )


def whole_of(ways: Sequence[Way], variant: Variant) -> Way | None:
    """The way that computes all of a network on the edge."""
    return next((way for way in ways if way.is_edge and way.variant is variant), None)
