"""Checkpoints that are whole or absent.

    checkpoints/step-120/
        checkpoint.json      step, pending samples by rank, settings, versions, SHA-256 sums
        state-0.safetensors  the state, or one file per rank where ranks' states differ

A checkpoint is written under a temporary name, flushed to the disk and renamed; it is read
only if every checksum is right, and otherwise the one before it is. Random states are not
among its contents because none outlives a step: every draw is seeded by (seed, purpose, step).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from convoy.errors import CheckpointError
from convoy.runtime.formation import Part
from convoy.state import merge
from convoy.strategies import Pending

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A state that training can go on from."""

    step: int
    """All steps before it are done."""
    generation: int
    parts: tuple[Part, ...]
    """One that stands for all ranks, or one per rank."""
    meta: Mapping[str, Any]


def write_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Add `checkpoint` to `folder` and remove all but it and the `keep` - 1 before it.

    Those of later steps go too: they are damaged, or of a past that was rolled back.

    Raises:
        CheckpointError: it cannot be written (a full disk, say); nothing of it is left behind.
    """
    target = folder / f"step-{checkpoint.step}"
    temporary = folder / f".step-{checkpoint.step}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in [*folder.glob(".step-*"), *folder.glob(".old-*")]:  # by a crash
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir()
        sums = {}
        for number, part in enumerate(checkpoint.parts):
            name = f"state-{number}.safetensors"
            sums[name] = _write_durably(temporary / name, save_tensors(part.tensors))
        body = {
            "version": VERSION,
            "step": checkpoint.step,
            "generation": checkpoint.generation,
            "pending": [[p.pending.samples, p.pending.step_samples] for p in checkpoint.parts],
            "files": sums,
            "meta": dict(checkpoint.meta),
        }
        body["sha256"] = _digest(_canonical(body))
        _write_durably(temporary / "checkpoint.json", json.dumps(body, indent=1).encode())
        _sync(temporary)
        _put_in_place(temporary, target)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(_cannot_write(folder, checkpoint.step, error)) from None
    present = sorted(_checkpoints(folder))
    older = [path for step, path in present if step <= checkpoint.step]
    newer = [path for step, path in present if step > checkpoint.step]
    for path in older[:-keep] + newer:
        shutil.rmtree(path, ignore_errors=True)
    return target


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest valid checkpoint in `folder`, and what is wrong with those newer than it."""
    warnings: list[str] = []
    for _, path in sorted(_checkpoints(folder), reverse=True):
        try:
            return read_checkpoint(path), warnings
        except CheckpointError as error:
            warnings.append(str(error))
    return None, warnings


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        CheckpointError: a file is missing, truncated or altered; names it.
    """
    header = path / "checkpoint.json"
    try:
        body = json.loads(header.read_bytes())
        stated = body.pop("sha256")
        if _digest(_canonical(body)) != stated:
            raise CheckpointError(f"{header} was altered: its checksum does not match")
        if body["version"] != VERSION:
            raise CheckpointError(
                f"{header} has format version {body['version']}; this Convoy reads {VERSION}"
            )
    except OSError as error:
        raise CheckpointError(f"{header} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{header} is damaged: not the JSON that was written") from None
    parts = []
    for (name, stated), pending in zip(body["files"].items(), body["pending"], strict=True):
        parts.append(
            Part(
                tensors=load_tensors(_read_verified(path / name, stated)),
                pending=Pending(samples=pending[0], step_samples=pending[1]),
            )
        )
    return Checkpoint(
        step=body["step"], generation=body["generation"], parts=tuple(parts), meta=body["meta"]
    )


def parts_for(
    checkpoint: Checkpoint | None, num_ranks: int
) -> tuple[list[Part | None], int | None]:
    """What each of `num_ranks` ranks loads, and the rank whose state all others take over.

    A state that stands for all is loaded by rank 0 and handed on. States that differ go back
    to the ranks they came from; where their number has changed, their average is taken,
    weighted by the samples that each was trained on since they last agreed.
    """
    nothing: list[Part | None] = [None] * num_ranks
    if checkpoint is None:
        return nothing, 0
    parts = checkpoint.parts
    if len(parts) == num_ranks > 1:
        return list(parts), None
    if len(parts) > 1:
        weights = [part.pending.samples for part in parts]
        parts = (Part(tensors=merge([part.tensors for part in parts], weights)),)
    return [parts[0], *nothing[1:]], 0


def _checkpoints(folder: Path) -> Sequence[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    names = [(p.name.removeprefix("step-"), p) for p in folder.glob("step-*")]
    return [(int(number), path) for number, path in names if number.isdecimal()]


def _read_verified(path: Path, stated: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if _digest(data) != stated:
        raise CheckpointError(
            f"{path} ({len(data)} bytes) is truncated or altered: its checksum does not match"
        )
    return data


def _write_durably(path: Path, data: bytes) -> str:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return _digest(data)


def _put_in_place(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`; what was there before goes only if that succeeds."""
    if not target.exists():
        temporary.rename(target)
        return
    old = target.with_name(f".old-{temporary.name.removeprefix('.')}")
    target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True).encode()


def _cannot_write(folder: Path, step: int, error: OSError) -> str:
    existing = folder if folder.exists() else folder.parent
    try:
        free = f"{shutil.disk_usage(existing).free:,} bytes are free there. "
    except OSError:
        free = ""
    last = max((s for s, _ in _checkpoints(folder)), default=None)
    kept = f"The checkpoint of step {last} is intact. " if last is not None else ""
    return (
        f"cannot write the checkpoint of step {step} under {folder}: {error.strerror}. {free}"
        f"{kept}Make room, then go on with --resume {folder.parent}"
    )
