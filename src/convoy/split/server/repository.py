"""What a server has: models by name and version, loaded, with the codecs that each understands."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convoy.errors import ManifestError, describe_unknown
from convoy.split import manifest as manifests
from convoy.split import sessions
from convoy.split.codecs import FEATURE_CODECS, Codec, feature_codec
from convoy.split.manifest import CutEntry, Manifest, TensorSpec, Variant
from convoy.split.messages import PLAIN
from convoy.split.pictures import PICTURE_CODECS, picture_codec
from convoy.split.server.refusals import RefusedError, Status, shown


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """One version of a model, ready to run."""

    name: str
    version: int
    sha256: str
    input: TensorSpec
    output: TensorSpec
    codecs: Mapping[str, Codec]
    """What its input may travel as."""
    read_by: str
    """A digest of what codecs depend on besides: ranges of channels, or how pictures are
    prepared; empty where nothing is."""
    session: sessions.Session

    @property
    def image_bytes(self) -> int:
        """One image of its input, as float32."""
        return 4 * self.input.elements


@dataclass(frozen=True, kw_only=True)
class Repository:
    """All models: by name, then by version."""

    models: Mapping[str, Mapping[int, Model]]

    def __iter__(self) -> Iterator[Model]:
        for versions in self.models.values():
            yield from versions.values()

    def versions(self, name: str) -> Mapping[int, Model]:
        """A model's versions, the newest last.

        Raises:
            RefusedError: there is no such model; the nearest is named.
        """
        if name not in self.models:
            known = list(self.models)
            text = describe_unknown("model", name[:100], known if len(known) <= 50 else known[:50])
            raise RefusedError(Status.NOT_FOUND, text)
        return self.models[name]

    def find(self, name: str, version: str) -> Model:
        """A version of a model; the newest where `version` is empty.

        Raises:
            RefusedError: there is no such model, or no such version of it.
        """
        versions = self.versions(name)
        if not version:
            return versions[max(versions)]
        found = versions.get(int(version)) if version.isdecimal() and len(version) < 10 else None
        if found is None:
            here = ", ".join(map(str, versions))
            raise RefusedError(
                Status.NOT_FOUND,
                f"model {name!r} has no version {shown(version)}. Here: {here}. An empty version "
                "is the newest",
            )
        return found


def load(*folders: Path, threads: int = 1) -> Repository:
    """Everything that the folders' manifests speak of.

    Args:
        threads: that one run of a model may use.

    Raises:
        ManifestError: a file is missing, altered, or not what the manifest says; or two folders
            have different models of one name and version, or the same with other ranges.
    """
    models: dict[str, dict[int, Model]] = {}
    whence: dict[tuple[str, int], Path] = {}
    for folder in folders:
        for model in _models_of(folder, threads):
            key = model.name, model.version
            known = models.setdefault(model.name, {}).setdefault(model.version, model)
            if (known.sha256, known.read_by) != (model.sha256, model.read_by):
                raise ManifestError(
                    f"{whence[key]} and {folder} both have version {model.version} of the model "
                    f"{model.name!r}, and it is not the same. Export one of them as another "
                    "version: convoy split export ... --model-version 2"
                )
            whence.setdefault(key, folder)
    return Repository(models={name: dict(sorted(models[name].items())) for name in sorted(models)})


def _models_of(folder: Path, threads: int) -> Iterator[Model]:
    manifest = manifests.load(folder)
    for variant in manifest.variants:
        yield _whole(folder, manifest, variant, threads)
        for entry in variant.cuts:
            yield _half(folder, manifest, entry, threads)


def _whole(folder: Path, manifest: Manifest, variant: Variant, threads: int) -> Model:
    codecs = {PLAIN: feature_codec(PLAIN, shape=manifest.input.shape)}
    by = manifest.preprocessing
    if by is not None:
        if manifest.input.shape != (by.channels, by.height, by.width):
            raise ManifestError(
                f"{folder / manifests.NAME}: pictures become {[by.channels, by.height, by.width]} "
                f"and the network takes {list(manifest.input.shape)}"
            )
        codecs |= {name: picture_codec(name, by) for name in PICTURE_CODECS if name != PLAIN}
    return _checked(
        Model(
            name=variant.model,
            version=variant.version,
            sha256=variant.whole.sha256,
            input=manifest.input,
            output=manifest.output,
            codecs=codecs,
            read_by="" if by is None else by.digest,
            session=_session(folder, variant.whole, threads),
        )
    )


def _half(folder: Path, manifest: Manifest, entry: CutEntry, threads: int) -> Model:
    shape, low, high = entry.features.shape, entry.low, entry.high
    return _checked(
        Model(
            name=entry.model,
            version=entry.version,
            sha256=entry.cloud.sha256,
            input=entry.features,
            output=manifest.output,
            codecs={n: feature_codec(n, shape=shape, low=low, high=high) for n in FEATURE_CODECS},
            read_by=entry.digest,
            session=_session(folder, entry.cloud, threads),
        )
    )


def _session(folder: Path, file: manifests.ModelFile, threads: int) -> sessions.Session:
    data = manifests.read_model(folder, file)
    return sessions.load(data, str(folder / file.file), threads=threads)


def _checked(model: Model) -> Model:
    """The model, once it has computed two images of zeros as the manifest says."""
    what = f"model {model.name!r}, version {model.version}"
    if model.session.input != model.input.name or model.session.output != model.output.name:
        raise ManifestError(
            f"{what}: its file takes {model.session.input!r} and makes {model.session.output!r}; "
            f"{manifests.NAME} says {model.input.name!r} and {model.output.name!r}"
        )
    try:
        made = model.session(np.zeros((2, *model.input.shape), np.float32))
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise ManifestError(
            f"{what} does not run on two images of {list(model.input.shape)}: {error}"
        ) from None
    if made.shape != (2, *model.output.shape):
        raise ManifestError(
            f"{what} makes {list(made.shape)} of two images; expected "
            f"{[2, *model.output.shape]}, {math.prod(model.output.shape)} numbers each"
        )
    return model
