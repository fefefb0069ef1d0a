"""Files of one JSON record per line, which a crash or a full disk may cut in the last one.

A line counts once its newline is there, since that is the last byte of it to be written.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convoy.errors import DataError


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of `path`; a last line without its newline is left out.

    Raises:
        DataError: a line is damaged; says which.
    """
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: not a JSON record")
        records.append(record)
    return records


def finite(value: Any) -> Any:
    """`value` with null for what JSON has no number for: NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def drop_unfinished(path: Path) -> None:
    """Cut a last line without its newline off, so that lines can be added. Raises OSError."""
    if path.is_file():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
