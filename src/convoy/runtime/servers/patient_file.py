"""Lines of JSON at the end of a file. Those for which there is no room wait in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convoy.runtime.json_lines import drop_unfinished, finite


class PatientFile:
    """A file that is only added to; it is made with its first line."""

    def __init__(self, path: Path) -> None:
        """Begin, or go on after the last whole line. Raises OSError."""
        drop_unfinished(path)
        self._path, self._waiting = path, bytearray()
        self._descriptor: int | None = None

    def add(self, record: Mapping[str, Any]) -> None:
        """Have a line follow; `flush` writes it."""
        self._waiting += (json.dumps(finite(record)) + "\n").encode()

    def flush(self, *, to_disk: bool = False) -> OSError | None:
        """Write what waits, as far as there is room; why some still waits, if it does."""
        try:
            if self._descriptor is None and self._waiting:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
                self._descriptor = os.open(self._path, flags, 0o666)
            while self._waiting:
                assert self._descriptor is not None
                written = os.write(self._descriptor, self._waiting)
                del self._waiting[:written]
            if to_disk and self._descriptor is not None:
                os.fsync(self._descriptor)
        except OSError as error:
            return error
        return None

    def close(self) -> OSError | None:
        """Let go of it; why some of it is not written, if so."""
        error = self.flush(to_disk=True)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        return error
