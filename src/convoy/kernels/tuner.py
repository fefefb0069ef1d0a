"""Which algorithm is fastest for each layer here: timed once, and kept.

    layers' geometries ─▶ kept from before? ─▶ else time torch's and ours, pass by pass ─▶ keep

What is kept is of one kind of device, number of threads, layout, dtype and versions, in a file of
the user's cache; layers of any network that have the same geometry share it. Batches are rounded
up to a power of two, so that a share of the batch that changes does not ask for new times.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import astuple, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import pooch
import torch
from filelock import FileLock, Timeout

from convoy.hardware import processor_abilities, processor_name
from convoy.kernels.geometry import Geometry
from convoy.kernels.passes import (
    LOWERING,
    PASSES,
    PIPELINED,
    TORCH,
    TORCH_CONTIGUOUS,
    TORCH_LAST,
    ByPass,
    by_pass,
)
from convoy.kernels.timing import timed_as_op
from convoy.version import __version__

OURS = (LOWERING, PIPELINED)
"""Those that can be fastest on a CPU."""
MOST_IMAGES = 64
"""Of more, a part is timed: what a convolution takes is proportional to them long before."""
MOST_FLOPS = 2e9
"""Of a pass that is timed: a twentieth of a second on a core; what is lowered is some 50 MB."""
MARGIN = 1.03
"""An algorithm is taken where torch's takes this much longer: less is noise."""
TURNS: Mapping[str, Any] = {"enough_s": 0.03, "least": 3, "hopeless": 1.3, "most_s": 2.0}
"""Of one pass, as `timing.turns_of` has them."""
LOCK_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Where:
    """In what circumstances a choice is timed and holds."""

    hardware: str
    """The processor's name and what it can do, or the GPU's name."""
    num_threads: int
    dtype: torch.dtype
    """float32 or float64."""
    last: bool = False
    """Whether the network is in channels-last."""
    device: str = "cpu"

    @property
    def candidates(self) -> tuple[str, ...]:
        """What is timed: torch's own first, in the network's layout and in the other."""
        other = TORCH_CONTIGUOUS if self.last else TORCH_LAST
        return (TORCH, other, *(OURS if self.device == "cpu" else ()))

    def key(self, what: str) -> str:
        """Under what a choice for `what` is kept: all that it depends on."""
        versions = [__version__, str(torch.__version__), platform.machine(), str(os.cpu_count())]
        for package in ("numba", "scipy"):
            with contextlib.suppress(PackageNotFoundError):
                versions.append(version(package))
        machine = hashlib.sha256(repr((self.hardware, versions)).encode()).hexdigest()[:12]
        layout = "channels-last" if self.last else "contiguous"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{what} {layout} {dtype} x{self.num_threads} {machine}"


def kept_here() -> Kept:
    """What is kept for this user."""
    return Kept(Path(pooch.os_cache("convoy")) / "convolutions.json")


def hardware_of(device: torch.device) -> str:
    """A device as times of it are kept: processors of one name may differ in vectors and caches."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{processor_name()}, {processor_abilities()}"


class Kept:
    """A file of choices, by what they were timed of. What cannot be read is timed anew."""

    def __init__(self, path: Path) -> None:
        """What is in `path`, which need not be there."""
        self.path = path
        self._found = self._read()

    def get(self, key: str) -> Any:
        """What was kept under a key; None without."""
        return self._found.get(key)

    def put(self, key: str, choice: Any, is_choice: Callable[[Any], bool]) -> Any:
        """Keep a choice, unless somebody else has kept one meanwhile.

        Args:
            key: what it is for.
            choice: what was found.
            is_choice: whether what stands there can be understood; it is replaced if not.

        Returns:
            What is kept under the key: who timed at the same time goes by the same choice. The file
            is never half written; where it cannot be written, `choice`.
        """
        self._found[key] = choice
        with contextlib.suppress(OSError, Timeout):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock", timeout=LOCK_S):
                there = self._read()
                if is_choice(there.get(key)):
                    self._found[key] = there[key]
                    return there[key]
                there[key] = choice
                beside = self.path.with_name(f"{self.path.name}.new")  # nobody else has the lock
                beside.write_text(json.dumps(there, indent=1, sort_keys=True) + "\n", "utf-8")
                beside.replace(self.path)
        return choice

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def tuned(
    layers: Mapping[str, Geometry],
    where: Where,
    kept: Kept,
    *,
    first: Container[str] = (),
    budget_s: float = math.inf,
    say: Callable[[str], Any] = lambda _text: None,
) -> dict[str, ByPass]:
    """The fastest algorithm of every layer, pass by pass.

    Args:
        layers: what each computes (`layers.geometries`).
        where: it is timed.
        kept: what was found before; what is found is added to it.
        first: layers whose input's gradient nobody asks for: torch's own there.
        budget_s: for which layers are timed, those that compute most first; the others keep
            torch's own, this time.
        say: told before something is timed, which takes seconds.
    """
    begun = time.perf_counter()
    asked = {
        name: _Asked(_rounded(of, where.num_threads), PASSES[::2] if name in first else PASSES)
        for name, of in layers.items()
    }
    keys = {one: where.key(str(one)) for one in asked.values()}
    found = {one: _understood(kept.get(key)) for one, key in keys.items()}
    missing = [one for one, choice in found.items() if choice is None]
    missing.sort(key=lambda one: -one.geometry.flops)
    if missing:
        candidates = ", ".join(where.candidates)
        say(f"timing {len(missing)} convolutions by {candidates}, once on this machine")
    for done, one in enumerate(missing):
        if time.perf_counter() - begun > budget_s:
            say(f"{len(missing) - done} convolutions are not timed yet: torch's own for these")
            break
        fastest = str(_fastest(one, where))
        found[one] = _understood(kept.put(keys[one], fastest, _is_understood))
    torchs = ByPass(TORCH, TORCH, TORCH)
    return {name: found[one] or torchs for name, one in asked.items()}


class _Asked(NamedTuple):
    """A convolution, and the passes of it that are of interest."""

    geometry: Geometry
    passes: tuple[str, ...]

    def __str__(self) -> str:
        numbers = (v if isinstance(v, tuple) else (v,) for v in astuple(self.geometry))
        shape = "-".join(str(n) for group in numbers for n in group)
        return shape if self.passes == PASSES else f"{shape} {'/'.join(self.passes)}"


def _is_understood(choice: Any) -> bool:
    return _understood(choice) is not None


def _understood(choice: Any) -> ByPass | None:
    with contextlib.suppress(Exception):
        return by_pass(choice)
    return None


def _rounded(geometry: Geometry, num_threads: int) -> Geometry:
    """What is timed in its place: few enough images that a turn takes little time and memory.

    But for each thread one, since some passes are divided by images only.
    """
    images = min(MOST_IMAGES, 1 << max(0, geometry.images - 1).bit_length())
    while images // 2 >= num_threads and geometry.of_images(images).flops > MOST_FLOPS:
        images //= 2
    return geometry.of_images(images)


def _fastest(asked: _Asked, where: Where) -> ByPass:
    candidates = where.candidates
    seconds = timed_as_op(
        asked.geometry,
        candidates,
        asked.passes,
        last=where.last,
        device=torch.device(where.device),
        dtype=where.dtype,
        **TURNS,
    )

    def best(what: str) -> str:
        if what not in asked.passes:
            return TORCH
        other = min(candidates[1:], key=lambda name: seconds[what, name])
        return other if seconds[what, other] * MARGIN < seconds[what, TORCH] else TORCH

    return ByPass(*map(best, PASSES))
