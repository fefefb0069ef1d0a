"""Which algorithm is fastest for each layer here: timed once, and kept.

    layers' geometries ─▶ kept from before? ─▶ else time torch's and ours, pass by pass ─▶ keep

What is kept is of one kind of processor, number of threads, dtype and versions, in a file of the
user's cache; layers of any network that have the same geometry share it. Batches are rounded up to
a power of two, so that a share of the batch that changes does not ask for new times.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import astuple
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from convoy.kernels.geometry import Geometry
from convoy.kernels.passes import LOWERING, PASSES, PIPELINED, TORCH, ByPass, by_pass
from convoy.kernels.timing import timed
from convoy.version import __version__

CANDIDATES = (TORCH, LOWERING, PIPELINED)
MOST_IMAGES = 64
"""Of more, a part is timed: what a convolution takes is proportional to them long before."""
MOST_FLOPS = 4e9
"""Of a pass that is timed: a tenth of a second on a core; what is lowered is then some 100 MB."""
MARGIN = 1.03
"""An algorithm of ours is taken where torch's takes this much longer: less is noise."""
ENOUGH_S = 0.1


class Kept:
    """A file of choices, by what they were timed of. What cannot be read is timed anew."""

    def __init__(self, path: Path, processor: str = "") -> None:
        """Choices in `path` that were timed on a processor of this name."""
        self.path, self.processor = path, processor
        self._found = self._read()

    def get(self, key: str) -> ByPass | None:
        """What was chosen, if it can be understood."""
        with contextlib.suppress(Exception):
            return by_pass(self._found[key])
        return None

    def put(self, choices: Mapping[str, ByPass]) -> None:
        """Keep these beside what others have kept meanwhile; the file is never half written."""
        self._found = self._read() | {key: str(choice) for key, choice in choices.items()}
        text = json.dumps(self._found, indent=1, sort_keys=True) + "\n"
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).replace(self.path)

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def tuned(
    layers: Mapping[str, Geometry],
    num_threads: int,
    dtype: torch.dtype,
    kept: Kept,
    *,
    say: Callable[[str], Any] = lambda _text: None,
) -> dict[str, ByPass]:
    """The fastest algorithm of every layer, pass by pass.

    Args:
        layers: what each computes (`layers.geometries`).
        num_threads: that share the work.
        dtype: float32 or float64.
        kept: what was found before; what is found is added to it.
        say: told before something is timed, which takes seconds.
    """
    rounded = {name: _rounded(geometry) for name, geometry in layers.items()}
    keys = {
        geometry: key_of(geometry, num_threads, dtype, kept.processor)
        for geometry in rounded.values()
    }
    found = {geometry: kept.get(key) for geometry, key in keys.items()}
    missing = [geometry for geometry, choice in found.items() if choice is None]
    if missing:
        say(f"timing {len(missing)} convolutions by {', '.join(CANDIDATES)}, once on this machine")
    for geometry in missing:
        fastest = _fastest(geometry, num_threads, dtype)
        found[geometry] = fastest
        kept.put({keys[geometry]: fastest})
    chosen = {geometry: choice for geometry, choice in found.items() if choice is not None}
    return {name: chosen[geometry] for name, geometry in rounded.items()}


def key_of(geometry: Geometry, num_threads: int, dtype: torch.dtype, processor: str) -> str:
    """Under what a choice is kept: what it depends on."""
    shape = "-".join(map(str, _flat(astuple(geometry))))
    return f"{shape} {str(dtype).removeprefix('torch.')} x{num_threads} {_machine(processor)}"


def _flat(values: tuple[Any, ...]) -> list[int]:
    return [n for v in values for n in (v if isinstance(v, tuple) else (v,))]


def _machine(processor: str) -> str:
    versions = [__version__, str(torch.__version__), platform.machine(), str(os.cpu_count())]
    for package in ("numba", "scipy"):
        with contextlib.suppress(PackageNotFoundError):
            versions.append(version(package))
    return hashlib.sha256(repr((processor, versions)).encode()).hexdigest()[:12]


def _rounded(geometry: Geometry) -> Geometry:
    """What is timed in its place: few enough images that a turn takes little time and memory."""
    images = min(MOST_IMAGES, 1 << max(0, geometry.images - 1).bit_length())
    while images > 1 and geometry.of_images(images).flops > MOST_FLOPS:
        images //= 2
    return geometry.of_images(images)


def _fastest(geometry: Geometry, num_threads: int, dtype: torch.dtype) -> ByPass:
    rows = timed(geometry, num_threads, CANDIDATES, dtype=dtype, enough_s=ENOUGH_S)
    seconds = {(row.what, row.algorithm): row.seconds for row in rows}

    def best(what: str) -> str:
        ours = min(CANDIDATES[1:], key=lambda name: seconds[what, name])
        return ours if seconds[what, ours] * MARGIN < seconds[what, TORCH] else TORCH

    return ByPass(*map(best, PASSES))
