"""A network that is to be cut, and everything that is known of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import nn

from convoy.datasets import DataSet
from convoy.split.codecs import FloatArray
from convoy.split.making.checking import BATCHES
from convoy.split.making.exporting import whole
from convoy.split.making.graph_cuts import Graph, GraphCut
from convoy.split.making.images import Batch, batches, preprocessing_of, spread
from convoy.split.making.measuring import JUDGING_BATCH, Bounds, calibrated
from convoy.split.manifest import Preprocessing
from convoy.split.sessions import Session, load

CALIBRATION_IMAGES = 500
"""Training images, evenly spread, whose features settle the ranges of channels."""


@dataclass(frozen=True, kw_only=True)
class SplitNetwork:
    """A trained network, or an ONNX file from elsewhere, of which no more is known."""

    variant: str
    """"" for the full network; otherwise as `pool2:8`."""
    name: str
    graph: Graph
    cuts: tuple[GraphCut, ...]
    """Where it is to be cut."""
    reference: nn.Module | None = None
    """What the graph was made of."""
    data: DataSet | None = None

    @cached_property
    def content(self) -> bytes:
        """The whole of it, as an ONNX file has it."""
        return whole(self.graph)

    @cached_property
    def session(self) -> Session:
        """The whole of it, loaded, with all cores."""
        return self.loaded(self.content)

    @cached_property
    def preprocessing(self) -> Preprocessing | None:
        """How pictures become its images, where that is known."""
        return preprocessing_of(self.data) if self.data else None

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names; numbers where nobody has named them."""
        if self.data is not None:
            return self.data.test.class_names
        return tuple(map(str, range(self.graph.output.elements)))

    def loaded(self, content: bytes, *, threads: int = 0) -> Session:
        """An ONNX file of this network's, loaded; with all cores that this process may use."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return load(content, self.graph.name, threads=threads or cores or 1)

    def images(self, count: int) -> FloatArray:
        """Training images as the network takes them, some of them again where there are too few.

        Where there is no data set they are made up.
        """
        if self.data is None:
            random = np.random.default_rng(0)
            return random.standard_normal((count, *self.graph.input.shape), dtype=np.float32)
        train = self.data.train
        (batch,) = batches(train, spread(count, len(train)), count)
        found: FloatArray = np.resize(batch.images, (count, *batch.images.shape[1:]))
        return found

    def checking_images(self) -> FloatArray:
        """As many as the largest batch that is tried."""
        return self.images(max(BATCHES))

    def bounds(self, edge: Session) -> Bounds | None:
        """The ranges of what crosses a cut; None where there are no images to learn them from."""
        if self.data is None:
            return None
        train = self.data.train
        chosen = spread(CALIBRATION_IMAGES, len(train))
        return calibrated(edge, batches(train, chosen, JUDGING_BATCH))

    def test_batches(self, count: int | None) -> Iterator[Batch]:
        """Test images a batch at a time: all, or `count` of them, evenly spread.

        Where there is no data set they are made up, and so are their labels.
        """
        if self.data is None:
            images = self.images(JUDGING_BATCH)
            yield Batch(images=images, labels=np.zeros(len(images), np.int64))
            return
        test = self.data.test
        chosen = spread(count, len(test)) if count else range(len(test))
        yield from batches(test, chosen, JUDGING_BATCH)
