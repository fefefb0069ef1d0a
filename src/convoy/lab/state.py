"""What a lab has made, on disk before it is made: so that it can be unmade whatever happens."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from convoy.errors import LabError

FOLDER = Path("/run/convoy-lab")


@dataclass(kw_only=True)
class LabState:
    """Everything of one lab that outlives the process that made it."""

    name: str
    cluster: str
    """The cluster file's text."""
    namespaces: dict[str, str] = field(default_factory=dict)
    """Network namespace by machine; the switch's under the empty name."""
    addresses: dict[str, str] = field(default_factory=dict)
    """IP address by machine."""
    cgroups: dict[str, str] = field(default_factory=dict)
    """Control group's folder by machine."""
    folder: str = ""
    """Where Ray and the names of hosts are kept."""
    links: dict[str, str] = field(default_factory=dict)
    """What has been changed of links since: by "a - b", "cut" or bits/s."""
    ready: bool = False

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return FOLDER / f"{self.name}.json"

    def claim(self) -> None:
        """Take the name. Raises LabError if a lab has it."""
        FOLDER.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            raise LabError(
                f"lab {self.name!r} is up, or was left behind: convoy lab down --name {self.name}"
            ) from None
        self.save()

    def save(self) -> None:
        """Write it, whole or not at all; everyone may read it."""
        FOLDER.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=FOLDER, prefix=f".{self.name}-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=1)
            os.fchmod(file.fileno(), 0o644)
        Path(temporary).replace(self.path)


def load(name: str) -> LabState:
    """The lab called `name`. Raises LabError if there is none."""
    path = FOLDER / f"{name}.json"
    try:
        return LabState(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        up = ", ".join(names()) or "none"
        raise LabError(
            f"no lab called {name!r} is up (up: {up}). Start it: convoy lab up FILE --name {name}"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise LabError(f"{path} cannot be read: {error}") from None


def names() -> list[str]:
    """The labs that are up, or were left behind."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))
