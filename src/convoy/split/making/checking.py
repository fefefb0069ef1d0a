"""Whether what was exported computes what it is to compute."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from convoy.errors import ManifestError
from convoy.split.codecs import FloatArray
from convoy.split.sessions import Session

TOLERANCE = 1e-4
"""Of the largest logit's size, or of 1 where that is larger. Halves are not equal to the last bit:
ONNX Runtime fuses other operators on either side of a cut."""
BATCHES = (1, 100)
"""Sizes that are tried."""


@dataclass(frozen=True, kw_only=True)
class Checker:
    """Images, and what the whole network makes of them."""

    images: FloatArray
    """As the network takes them, at least as many as the largest of `BATCHES`."""
    whole: Session
    name: str

    def check_whole(self, network: nn.Module) -> None:
        """Raise ManifestError unless torch computes the same."""
        network = network.to("cpu", torch.float32).eval()
        for count in BATCHES:
            images = self.images[:count]
            with torch.inference_mode():
                expected = network(torch.from_numpy(images)).numpy()
            what = f"{self.name} as ONNX"
            self._compare(what, "torch", self._run(what, images, self.whole), expected)

    def check_halves(self, cut: str, edge: Session, cloud: Session) -> None:
        """Raise ManifestError unless both halves together compute what the whole does."""
        for count in BATCHES:
            images = self.images[:count]
            expected = self._run(self.name, images, self.whole)
            what = f"{self.name} cut at {cut}"
            self._compare(what, "the whole", self._run(what, images, edge, cloud), expected)

    def _run(self, what: str, images: FloatArray, *parts: Session) -> FloatArray:
        """What `parts`, one after the other, make of some images."""
        values = images
        try:
            for part in parts:
                values = part(values)
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise ManifestError(
                f"{what} cannot take a batch of {len(images)}: {error}. Expected a network that "
                "takes batches of any size"
            ) from None
        return values

    def _compare(self, what: str, reference: str, found: FloatArray, expected: FloatArray) -> None:
        if found.shape != expected.shape:
            raise ManifestError(
                f"{what} gives {list(found.shape)} where {reference} gives {list(expected.shape)}"
            )
        allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
        worst = float(np.abs(found - expected).max())
        if not worst <= allowed:
            raise ManifestError(
                f"{what}: logits differ from those of {reference} by up to {worst:.2g}, and "
                f"{allowed:.2g} is allowed (batch of {len(expected)}). Nothing was written. Cut "
                "elsewhere, or look for an operator that ONNX Runtime computes differently"
            )
