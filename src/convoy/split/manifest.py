"""What `convoy split export` writes beside its models, and edge and cloud agree on.

    DIR/manifest.json
    DIR/full/1/full.onnx                   the whole network           DIR/full/config.pbtxt
    DIR/pool2/1/{edge,cloud}.onnx          its halves, cut at pool2    DIR/pool2/config.pbtxt
    DIR/pool2-8/1/{edge,cloud}.onnx        the same with 8 filters there
    DIR/full-pool2-8/1/full.onnx           that network as a whole

DIR is a model repository, as Triton and KServe read it. **Contract**.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convoy.errors import ManifestError, UnknownNameError

FORMAT = 1
NAME = "manifest.json"
WHOLE = "full"
EDGE, PICTURE = "edge", "picture"
"""How ways are called that send nothing, and that send the picture."""
MOST_ELEMENTS = 1 << 26
"""Of one image's tensor: what is larger is taken for damage."""

_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """A tensor that enters or leaves a model: float32, a row for each image."""

    name: str
    shape: tuple[int, ...]
    """Of one image."""

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1 or self.elements > MOST_ELEMENTS:
            raise ManifestError(f"tensor {self.name!r} has the shape {self.shape}")

    @property
    def elements(self) -> int:
        """Of one image."""
        return math.prod(self.shape)


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How pictures become what the network takes: resized, by 255, less `mean`, over `std`."""

    height: int
    width: int
    mean: tuple[float, ...]
    """By channel: one is grey, three are red, green and blue."""
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean):
            raise ManifestError(
                f"preprocessing: {len(self.mean)} means and {len(self.std)} standard deviations; "
                "expected one of each by channel, of one channel or three"
            )
        if not all(math.isfinite(x) for x in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise ManifestError("preprocessing: standard deviations are to be above 0")

    @property
    def channels(self) -> int:
        """1 or 3."""
        return len(self.mean)

    @property
    def digest(self) -> str:
        """Of what pictures are decoded by."""
        return _digest([self.height, self.width, self.mean, self.std])


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A model's file, and what it is to contain."""

    file: str
    """Relative to the manifest, with slashes."""
    sha256: str

    def __post_init__(self) -> None:
        path = PurePosixPath(self.file)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ManifestError(f"the file {self.file!r} is not below the manifest's folder")


@dataclass(frozen=True, kw_only=True)
class CodecFacts:
    """What was measured of a way to send something."""

    name: str
    bytes_per_image: float
    accuracy: float | None = None
    """Of the network when it is sent so, on test images."""


@dataclass(frozen=True, kw_only=True)
class CutEntry:
    """A network in two halves."""

    cut: str
    """The layer whose output crosses."""
    model: str
    """What the server calls the second half."""
    features: TensorSpec
    """What crosses."""
    low: tuple[float, ...]
    """The least value by channel that calibration saw (one for all where there is one)."""
    high: tuple[float, ...]
    edge: ModelFile
    cloud: ModelFile
    codecs: tuple[CodecFacts, ...]
    version: int = 1

    def __post_init__(self) -> None:
        check_model(self.model)
        if len(self.low) not in (1, self.features.shape[0]) or len(self.low) != len(self.high):
            raise ManifestError(
                f"cut {self.cut!r}: {len(self.low)} and {len(self.high)} bounds for "
                f"{self.features.shape[0]} channels"
            )
        bounds = list(zip(self.low, self.high, strict=True))
        if not all(math.isfinite(x) for pair in bounds for x in pair) or any(
            low > high for low, high in bounds
        ):
            raise ManifestError(f"cut {self.cut!r}: bounds that are no ranges")

    @property
    def digest(self) -> str:
        """Of what features are decoded by."""
        return _digest([self.low, self.high])


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A network, whole and in halves: the trained one, or one with fewer filters at a cut."""

    name: str
    """"" for the trained one; otherwise as `pool2:8`."""
    network: str
    model: str
    """What the server calls the whole."""
    whole: ModelFile
    codecs: tuple[CodecFacts, ...]
    """Of pictures."""
    cuts: tuple[CutEntry, ...] = ()
    accuracy: float | None = None
    version: int = 1

    def __post_init__(self) -> None:
        check_model(self.model)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that was exported into one folder."""

    network: str
    classes: tuple[str, ...]
    input: TensorSpec
    output: TensorSpec
    preprocessing: Preprocessing | None
    """None: of a network whose pictures nobody has described (an ONNX file from elsewhere)."""
    variants: tuple[Variant, ...]
    dataset: str = ""
    """What it was trained on, as it was asked for; "" where nobody knows."""
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    calibration_images: int = 0
    """How many training images settled the ranges of channels."""
    samples: ModelFile | None = None
    """Some test pictures, uint8 [n, height, width, channels], in NumPy's format: to time codecs."""
    format: int = FORMAT

    def __post_init__(self) -> None:
        if not self.variants:
            raise ManifestError("no network in it")
        models = [(m, v) for m, v, _ in self.served()]
        if len(set(models)) < len(models):
            raise ManifestError("two models of one name and version in it")

    def served(self) -> Iterator[tuple[str, int, ModelFile]]:
        """Model, version and file of everything that a server has."""
        for variant in self.variants:
            yield variant.model, variant.version, variant.whole
            for entry in variant.cuts:
                yield entry.model, entry.version, entry.cloud

    def files(self) -> Iterator[ModelFile]:
        """All files that belong to it."""
        if self.samples is not None:
            yield self.samples
        for variant in self.variants:
            yield variant.whole
            for entry in variant.cuts:
                yield from (entry.edge, entry.cloud)

    def cut(self, model: str) -> tuple[Variant, CutEntry]:
        """The entry that a server calls `model`."""
        known = {e.model: (v, e) for v in self.variants for e in v.cuts}
        if model not in known:
            raise UnknownNameError("cut", model, known)
        return known[model]


def check_model(name: str) -> None:
    """Raise ManifestError unless `name` can be a folder's and a model's."""
    if _MODEL.fullmatch(name) is None:
        raise ManifestError(f"{name!r} is no name of a model: letters, digits and _.-")


def model_name(*parts: str) -> str:
    """A model's name made of what it is: full, pool2-8, full-pool2-8."""
    joined = "-".join(part.replace(":", "-") for part in parts if part)
    return re.sub(r"[^A-Za-z0-9_.\-]", "_", joined).lstrip(".-") or "model"


def way_name(variant: str, cut: str | None, codec: str | None) -> str:
    """What a way to compute a network is called.

    edge                    all of it here             edge pool2:8       with fewer filters
    picture/jpeg            all of it there            picture/jpeg pool2:8
    pool2/uint8             cut                        pool2:8/uint8      cut where it is narrowed
                                                       pool1/uint8 pool2:8
    """
    if cut is not None and variant.rpartition(":")[0] == cut:
        return f"{variant}/{codec}"
    what = EDGE if codec is None else f"{cut or PICTURE}/{codec}"
    return f"{what} {variant}".rstrip()


def to_json(manifest: Manifest) -> str:
    """As the file has it."""
    from pydantic import TypeAdapter

    return json.dumps(TypeAdapter(Manifest).dump_python(manifest, mode="json"), indent=1) + "\n"


def load(folder: Path) -> Manifest:
    """The manifest of a folder; of files nothing is read.

    Raises:
        ManifestError: none there, of another format, or damaged; says where.
    """
    path = folder / NAME
    again = "Export again: convoy split export RUN --cut CUT --out DIR"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ManifestError(
            f"cannot read {path}: {error.strerror}. Expected a folder that `convoy split export` "
            "made"
        ) from None
    except ValueError as error:
        raise ManifestError(f"{path} is not JSON: {error}. {again}") from None
    return read(content, str(path), again)


def read(content: Any, source: str, again: str) -> Manifest:
    """A manifest out of what JSON says. Raises ManifestError."""
    from pydantic import TypeAdapter, ValidationError

    if not isinstance(content, dict) or "format" not in content:
        raise ManifestError(f"{source} is not a manifest: it has no format. {again}")
    if content["format"] != FORMAT:
        found = content["format"]
        raise ManifestError(
            f"{source} has the format {found!r}, and this Convoy reads {FORMAT}. {again}"
        )
    try:
        return TypeAdapter(Manifest).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ManifestError(f"{source}: {where}: {first['msg']}. {again}") from None
    except ManifestError as error:
        raise ManifestError(f"{source}: {error}. {again}") from None


def read_samples(folder: Path, manifest: Manifest) -> NDArray[np.uint8] | None:
    """Test pictures that came with the models, uint8 [n, height, width, channels], if any did.

    Raises:
        ManifestError: they are not there, or no such pictures.
    """
    by, file = manifest.preprocessing, manifest.samples
    if file is None or by is None:
        return None
    try:
        pixels = np.load(io.BytesIO(read_model(folder, file)), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ManifestError(f"{folder / file.file} is no array of NumPy's: {error}") from None
    wanted = (by.height, by.width, by.channels)
    if pixels.dtype != np.uint8 or pixels.shape[1:] != wanted or not len(pixels):
        raise ManifestError(
            f"{folder / file.file} has {pixels.dtype} {list(pixels.shape)}; expected uint8 "
            f"pictures of {list(wanted)}"
        )
    found: NDArray[np.uint8] = pixels
    return found


def read_model(folder: Path, file: ModelFile) -> bytes:
    """A model's bytes.

    Raises:
        ManifestError: they are not there, or not those that the manifest speaks of.
    """
    path = folder / file.file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"cannot read {path}, which {NAME} names: {error.strerror}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != file.sha256:
        raise ManifestError(
            f"{path} is not the file that {NAME} speaks of: its SHA-256 is {found[:12]}…, expected "
            f"{file.sha256[:12]}…. Copy the folder again, whole"
        )
    return data
