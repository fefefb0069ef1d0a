"""What Convoy raises.

    ConvoyError
    ├── UsageError             the request cannot be carried out as it was put (exit status 2)
    │   ├── UnknownNameError   a network, data set, strategy, option ... that does not exist
    │   ├── ClusterError       a cluster file, or machines that are not as it says
    │   ├── ProfileError       measured figures that cannot be read, or are of something else
    │   └── ManifestError      exported models that cannot be read, or do not fit one another
    ├── DataError              a file of a data set is missing, truncated or wrong
    ├── CheckpointError        nothing valid to resume from, or it cannot be written
    ├── DivergedError          a loss that is no longer a finite number
    ├── CrewError              ranks that cannot start, meet or go on
    ├── ServerError            a server of a split network that cannot start, or refuses for good
    ├── CodecError             what came over the wire is not what it was said to be
    └── LabError               an emulated cluster that cannot be built, changed or reached

Every message names the thing, says what was expected and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConvoyError(Exception):
    """Base of everything Convoy raises on purpose."""


class UsageError(ConvoyError):
    """The request itself is wrong; nothing was started."""


class UnknownNameError(UsageError):
    """A name that is not among the known ones; offers the nearest."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.kind, self.name, self.known, self.hint = kind, name, sorted(known), hint
        super().__init__(describe_unknown(kind, name, self.known, hint))

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[str, str, list[str], str]]:
        return (UnknownNameError, (self.kind, self.name, self.known, self.hint))


class ClusterError(UsageError):
    """A cluster description that is wrong, or does not match the machines found."""


class ProfileError(UsageError):
    """A profile that cannot be read, or was taken of something else."""


class ManifestError(UsageError):
    """Exported models, or what is written about them, that cannot be read or do not fit."""


class DataError(ConvoyError):
    """A data set's files are missing, truncated or inconsistent."""


class CheckpointError(ConvoyError):
    """No valid checkpoint where one is needed, or one cannot be written."""


class DivergedError(ConvoyError):
    """The loss became NaN or infinite; training stopped before the update."""


class CrewError(ConvoyError):
    """The ranks cannot be started, cannot reach one another or cannot go on."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names that resemble `name` most, best first; may be empty."""
    return difflib.get_close_matches(name.lower(), sorted(known), n=count, cutoff=0.5)


def describe_unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> str:
    """A sentence that names an unknown `name` and offers the nearest, or all, known ones."""
    known = sorted(known)
    close = nearest(name, known)
    if close:
        offer = f"Nearest: {', '.join(close)}."
        if len(known) <= 12:
            offer += f" Known: {', '.join(known)}."
    else:
        offer = f"Known: {', '.join(known)}."
    return f"unknown {kind} {name!r}. {offer}" + (f" {hint}" if hint else "")


class ServerError(ConvoyError):
    """A server of a split network cannot start, or refuses this client for good."""


class CodecError(ConvoyError):
    """What came over the wire is damaged, or not what it was said to be."""


class LabError(ConvoyError):
    """The lab cannot be built, changed or reached as asked."""
