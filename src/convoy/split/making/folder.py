"""`convoy split export`: networks, whole and in halves, with what is known of each, in a folder."""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from convoy.errors import UsageError
from convoy.split.making.checking import Checker
from convoy.split.making.exporting import FEATURES, OPSET, halves
from convoy.split.making.graph_cuts import GraphCut
from convoy.split.making.images import pixels_of
from convoy.split.making.measuring import (
    feature_codecs,
    judge_features,
    judge_pictures,
)
from convoy.split.making.networks import CALIBRATION_IMAGES, SplitNetwork
from convoy.split.making.repository import (
    new_folder,
    write_config,
    write_file,
    write_manifest,
    write_model,
)
from convoy.split.manifest import (
    WHOLE,
    CutEntry,
    Manifest,
    ModelFile,
    TensorSpec,
    Variant,
    model_name,
)
from convoy.version import __version__

BYTES_IMAGES = 200
"""Test images whose bytes are counted, where accuracy is not asked for."""
SAMPLES, SAMPLES_BYTES = 200, 1 << 22
"""Test pictures that are exported with the models: how many, and how large, at most."""
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """How to export."""

    out: Path
    with_accuracy: bool = True
    """Whether to judge every codec on test images."""
    images: int | None = None
    """How many of them; all without it."""
    version: int = 1
    """Of the models."""

    def __post_init__(self) -> None:
        if not 1 <= self.version < 10**9:
            raise UsageError(f"model version {self.version}: expected a whole number from 1 on")

    @property
    def judged(self) -> int | None:
        """Test images to send through every codec."""
        return self.images if self.with_accuracy else BYTES_IMAGES


def export_networks(
    networks: Sequence[SplitNetwork], settings: ExportSettings, say: Say
) -> Manifest:
    """Write the folder, whole or not at all.

    Args:
        networks: the full one first, then those with fewer filters.
        settings: where, and how much to measure.
        say: is told what is being done.

    Raises:
        UsageError: there is something at the place already.
        ManifestError: halves do not compute what the whole does.
        ConvoyError: it cannot be written.
    """
    full = networks[0]
    with new_folder(settings.out) as folder:
        manifest = Manifest(
            network=full.name,
            classes=full.classes,
            input=full.graph.input,
            output=full.graph.output,
            preprocessing=full.preprocessing,
            variants=tuple(_variant(network, folder, settings, say) for network in networks),
            dataset=full.data.name if full.data is not None else "",
            versions=_versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            calibration_images=_calibration_images(full),
            samples=_samples(full, folder),
        )
        write_manifest(folder, manifest)
    return manifest


def _variant(network: SplitNetwork, folder: Path, settings: ExportSettings, say: Say) -> Variant:
    say(f"{network.name}: the whole")
    checker = Checker(
        images=network.checking_images(), whole=network.session, name=network.graph.name
    )
    if network.reference is not None:
        checker.check_whole(network.reference)
    model = model_name(WHOLE, network.variant)
    file = f"{WHOLE}.onnx"
    written = write_model(folder, model, settings.version, file, network.content)
    write_config(folder, model, file, network.graph.input, network.graph.output)
    cuts = tuple(_cut(network, cut, checker, folder, settings, say) for cut in network.cuts)
    judged = judge_pictures(
        network.session, network.preprocessing, network.test_batches(settings.judged)
    )
    facts = judged.facts(with_accuracy=_is_judged(network, settings))
    return Variant(
        name=network.variant,
        network=network.name,
        model=model,
        whole=written,
        codecs=facts,
        cuts=cuts,
        accuracy=facts[0].accuracy,
        version=settings.version,
    )


def _cut(
    network: SplitNetwork,
    cut: GraphCut,
    checker: Checker,
    folder: Path,
    settings: ExportSettings,
    say: Say,
) -> CutEntry:
    say(f"{network.name}: cut at {cut.name}")
    before, after = halves(network.graph, cut)
    edge, cloud = network.loaded(before), network.loaded(after)
    checker.check_halves(cut.name, edge, cloud)
    model = model_name(network.variant or cut.name)
    crossing = TensorSpec(name=FEATURES, shape=cut.shape)
    edge_file = write_model(folder, model, settings.version, "edge.onnx", before)
    cloud_file = write_model(folder, model, settings.version, "cloud.onnx", after)
    write_config(folder, model, "cloud.onnx", crossing, network.graph.output)
    bounds = network.bounds(edge)
    codecs = feature_codecs(cut.shape, bounds)
    judged = judge_features(edge, cloud, codecs, network.test_batches(settings.judged))
    return CutEntry(
        cut=cut.name,
        model=model,
        features=crossing,
        low=bounds.low if bounds else (0.0,),
        high=bounds.high if bounds else (0.0,),
        edge=edge_file,
        cloud=cloud_file,
        codecs=judged.facts(with_accuracy=_is_judged(network, settings)),
        version=settings.version,
    )


def _samples(network: SplitNetwork, folder: Path) -> ModelFile | None:
    """Some test pictures, written: what an edge client times its codecs on."""
    by = network.preprocessing
    if by is None:
        return None
    most = max(1, SAMPLES_BYTES // (by.height * by.width * by.channels))
    found = [pixels_of(b.images, by) for b in network.test_batches(min(SAMPLES, most))]
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate(found), allow_pickle=False)
    return write_file(folder, "samples.npy", buffer.getvalue())


def _is_judged(network: SplitNetwork, settings: ExportSettings) -> bool:
    return network.data is not None and settings.with_accuracy


def _calibration_images(network: SplitNetwork) -> int:
    return min(CALIBRATION_IMAGES, len(network.data.train)) if network.data else 0


def _versions() -> dict[str, str]:
    packages = ("torch", "onnx", "onnxruntime")
    return {"convoy": __version__, "opset": str(OPSET)} | {
        name: importlib.metadata.version(name) for name in packages
    }
