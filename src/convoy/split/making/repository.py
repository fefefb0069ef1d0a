"""The folder that an export leaves: a model repository, and written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convoy.errors import ConvoyError, UsageError
from convoy.split.manifest import NAME, Manifest, ModelFile, TensorSpec, to_json

MAX_BATCH = 256
"""What Triton is told; Convoy's own server has an option for it."""
PREFERRED_BATCHES = (16, 64)
MAX_DELAY_US = 500


def check_vacant(out: Path) -> None:
    """Raise UsageError if there is something where the folder is to be."""
    try:
        vacant = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    except OSError as error:
        raise UsageError(f"--out {out} cannot be looked into: {error.strerror}") from None
    if not vacant:
        raise UsageError(f"--out {out} is not an empty folder; give another one, or remove it")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, which becomes `out` at the end, unless there is an error.

    Raises:
        UsageError: there is something at `out`, or no folder can be made there.
        ConvoyError: a file could not be written.
    """
    check_vacant(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise UsageError(f"cannot make a folder at {out}: {error.strerror}") from None
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        temporary.replace(out)
    except OSError as error:
        raise ConvoyError(f"cannot write {out}: {error.strerror}. Nothing was left there") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_model(folder: Path, model: str, version: int, name: str, data: bytes) -> ModelFile:
    """Write DIR/model/version/name, and say what it contains."""
    return write_file(folder, f"{model}/{version}/{name}", data)


def write_file(folder: Path, name: str, data: bytes) -> ModelFile:
    """Write DIR/name, and say what it contains."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return ModelFile(file=name, sha256=hashlib.sha256(data).hexdigest())


def write_config(folder: Path, model: str, file: str, takes: TensorSpec, gives: TensorSpec) -> None:
    """Write DIR/model/config.pbtxt, which Triton reads; `file` is what it is to serve."""
    text = f"""name: "{model}"
platform: "onnxruntime_onnx"
default_model_filename: "{file}"
max_batch_size: {MAX_BATCH}
input [ {_tensor(takes)} ]
output [ {_tensor(gives)} ]
dynamic_batching {{
  preferred_batch_size: [ {", ".join(map(str, PREFERRED_BATCHES))} ]
  max_queue_delay_microseconds: {MAX_DELAY_US}
}}
"""
    (folder / model / "config.pbtxt").write_text(text, encoding="utf-8")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write DIR/manifest.json."""
    (folder / NAME).write_text(to_json(manifest), encoding="utf-8")


def _tensor(spec: TensorSpec) -> str:
    dims = ", ".join(map(str, spec.shape))
    return f'{{ name: "{spec.name}", data_type: TYPE_FP32, dims: [ {dims} ] }}'
