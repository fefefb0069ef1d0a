"""What was measured of machines, links and a network: a JSON file that people can read and edit.

    profile.json
      network      which one, for what images; a fingerprint of its layers
      devices      seconds of loading, forward, backward by number of samples, and of each layer;
                   of the optimizer's update; how much they vary
      links        bandwidth and latency between machines
      all_reduce   seconds and CPU time by size

Times are means of steps in a row, since a step that a quota or a neighbour has stretched is as
much part of a run as any other; how much they vary stands beside them, as deciles.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convoy.cost.curve import Curve
from convoy.errors import ProfileError

VERSION = 2
STEADY = (1.0,)


@dataclass(frozen=True, kw_only=True)
class ProfiledNetwork:
    """What was measured on the devices."""

    name: str
    input: tuple[int, ...]
    """Channels, height, width of an image."""
    classes: int
    fingerprint: str
    """Of its layers and their sizes (`cost.layers.fingerprint`)."""


@dataclass(frozen=True, kw_only=True)
class LayerProfile:
    """One layer's seconds, by the device's numbers of samples."""

    name: str
    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    filters: Mapping[str, float] = field(default_factory=dict)
    """Of a convolution: time of a fraction of its filters, relative to all of them."""


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """One device's part in training this network."""

    machine: str
    device: str
    """torch's name: "cpu", "cuda:0"."""
    hardware: str
    """The processor's name."""
    cores: float
    threads: int
    memory_bytes: int
    """What its machine, or the GPU, has for all."""
    samples: tuple[int, ...]
    load_s: tuple[float, ...]
    """Fetching a batch and bringing it to the device."""
    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    update_s: float
    """The optimizer's step, and what else ends every step."""
    replica_s: tuple[float, ...] = ()
    """What a replica that exchanges gradients takes more in a step, bytes apart."""
    average_s: float = 0.0
    """What averaging network and optimizer with others takes, bytes apart."""
    accumulate_s: float = 0.0
    """What adding gradients of the whole network to those of another batch takes."""
    alone: float = 1.0
    """Time when the other devices rest, relative to the times here, when all worked at once."""
    variation: tuple[float, ...] = STEADY
    """Deciles of a step's time relative to the mean."""
    layers: tuple[LayerProfile, ...] = ()
    convolutions: Mapping[str, str] = field(default_factory=dict)
    """By layer, what `--conv-algorithm auto` chose there; torch's where none is named."""
    memory_formats: Mapping[str, float] = field(default_factory=dict)
    """Seconds of forward and backward in each layout that was tried."""

    def __post_init__(self) -> None:
        for name in ("load_s", "forward_s", "backward_s"):
            self._check(name, getattr(self, name))
        if self.replica_s:
            self._check("replica_s", self.replica_s)
        for layer in self.layers:
            self._check(f"{layer.name}.forward_s", layer.forward_s)
            self._check(f"{layer.name}.backward_s", layer.backward_s)
        where = f"{self.machine} ({self.device})"
        of_state = ("update_s", "average_s", "accumulate_s")
        for name in ("cores", "threads", "memory_bytes", *of_state, "alone"):
            zero = name in ("memory_bytes", *of_state)
            _check_figures(where, name, getattr(self, name), zero=zero)
        _check_figures(where, "variation", *self.variation)

    def _check(self, name: str, seconds: tuple[float, ...]) -> None:
        _check_curve(f"{self.machine} ({self.device})", name, self.samples, seconds)

    def curve(self, phase: str) -> Curve:
        """Seconds of `load`, `forward` or `backward` of the whole network, by samples."""
        return Curve(self.samples, getattr(self, f"{phase}_s"))

    def layer(self, name: str) -> LayerProfile:
        """The layer called `name`; ProfileError if it was not measured."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise ProfileError(
            f"the profile has no times of layer {name!r} on {self.machine} ({self.device}); it "
            f"has {', '.join(known.name for known in self.layers) or 'none'}. Measure again: "
            "convoy measure"
        )


@dataclass(frozen=True, kw_only=True)
class LinkProfile:
    """What was measured between two machines, or between two ranks of one machine."""

    between: tuple[str, str]
    bandwidth_bytes_s: float
    latency_s: float
    """One way."""
    variation: tuple[float, ...] = STEADY
    """Deciles of a transfer's time relative to the mean."""

    def __post_init__(self) -> None:
        where = f"link {self.between[0]} - {self.between[1]}"
        _check_figures(where, "bandwidth_bytes_s", self.bandwidth_bytes_s)
        _check_figures(where, "latency_s", self.latency_s, zero=True)
        _check_figures(where, "variation", *self.variation)


@dataclass(frozen=True, kw_only=True)
class AllReduceProfile:
    """All-reduces among the profile's devices, by size: all of them, or the first."""

    payload_bytes: tuple[int, ...]
    seconds: tuple[float, ...]
    cpu_s: tuple[tuple[float, ...], ...]
    """CPU time of each rank, by size; as many of the profile's first devices took part."""
    variation: tuple[float, ...] = STEADY
    s_per_byte: float | None = None
    """Of `seconds`, what was the way of each byte of payload over the links as they were then;
    None: over those that stand in the profile."""
    delay_s: float = 0.0
    """Of `seconds`, what was the links' latencies."""

    def __post_init__(self) -> None:
        _check_curve("all_reduce", "seconds", self.payload_bytes, self.seconds)
        for rank, row in enumerate(self.cpu_s):
            _check_curve("all_reduce", f"cpu_s.{rank}", self.payload_bytes, row)
        _check_figures("all_reduce", "variation", *self.variation)
        _check_figures("all_reduce", "s_per_byte", self.s_per_byte or 0.0, zero=True)
        _check_figures("all_reduce", "delay_s", self.delay_s, zero=True)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Measured figures, and what they were measured of."""

    network: ProfiledNetwork
    precision: str
    optimizer: str
    memory_format: str
    """The layout of all times here."""
    batch_size: int
    """The largest number of samples that was asked for."""
    versions: Mapping[str, str]
    devices: tuple[DeviceProfile, ...]
    links: tuple[LinkProfile, ...] = ()
    all_reduce: AllReduceProfile | None = None
    loading: str = "from memory"
    """What loading is: fetching images that lie in memory, or a data set's name; and augmenting."""
    conv_algorithm: str = "torch"
    """What convolutions were computed by."""
    created: str = ""
    version: int = VERSION

    def save(self, path: Path) -> None:
        """Write the profile as JSON; never half of it.

        Raises:
            ProfileError: it cannot be written there.
        """
        text = to_json(self)
        beside = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(text, encoding="utf-8")
            beside.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            raise ProfileError(f"cannot write the profile {path}: {error.strerror}") from None


def to_json(profile: Profile) -> str:
    """The profile as its file has it: figures to five digits, lists of numbers on one line."""
    from pydantic import TypeAdapter  # takes its time, and who only trains does not want it

    return _lines(TypeAdapter(Profile).dump_python(profile, mode="json"), "") + "\n"


def load(path: Path) -> Profile:
    """The profile in a file.

    Raises:
        ProfileError: no file, no profile, one of another version, or figures that cannot be.
    """
    from pydantic import TypeAdapter, ValidationError

    again = "Measure again: convoy measure --out PROFILE"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(
            f"cannot read the profile {path}: {error.strerror}. Make one: convoy measure --out "
            f"{path}"
        ) from None
    except ValueError as error:
        raise ProfileError(f"{path} is not JSON: {error}. {again}") from None
    if not isinstance(content, dict) or "version" not in content:
        raise ProfileError(f"{path} is not a profile: it has no version. {again}")
    if content["version"] != VERSION:
        raise ProfileError(
            f"{path} is a profile of version {content['version']}, and this Convoy reads "
            f"{VERSION}. {again}"
        )
    try:
        return TypeAdapter(Profile).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ProfileError(f"{path}: {where}: {first['msg']}") from None
    except ProfileError as error:
        raise ProfileError(f"{path}: {error}") from None


def places_of(devices: Sequence[DeviceProfile]) -> list[tuple[str, str, int]]:
    """Of each its machine, its name there, and which of the ranks on that it is, from 1."""
    found: list[tuple[str, str, int]] = []
    for device in devices:
        before = sum(place[:2] == (device.machine, device.device) for place in found)
        found.append((device.machine, device.device, before + 1))
    return found


def _check_curve(where: str, name: str, sizes: tuple[int, ...], seconds: tuple[float, ...]) -> None:
    try:
        Curve(sizes, seconds)
    except ValueError as error:
        raise ProfileError(f"{where}, {name}: {error}") from None


def _check_figures(where: str, name: str, *figures: float, zero: bool = False) -> None:
    if not figures:
        raise ProfileError(f"{where}, {name}: expected at least one number")
    for figure in figures:
        if not (math.isfinite(figure) and (figure > 0 or (zero and figure == 0))):
            expected = "0 or more" if zero else "more than 0"
            raise ProfileError(f"{where}, {name}: {figure:g}; expected {expected}")


def _lines(value: Any, indent: str) -> str:
    deeper = indent + " "
    if isinstance(value, dict) and value:
        rows = [f"{deeper}{json.dumps(k)}: {_lines(v, deeper)}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "[\n" + ",\n".join(deeper + _lines(v, deeper) for v in value) + f"\n{indent}]"
    if isinstance(value, float):
        return repr(float(f"{value:.5g}"))
    if isinstance(value, list) and _is_numbers(value):
        return "[" + ", ".join(_lines(v, deeper) for v in value) + "]"
    return json.dumps(value)


def _is_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
