"""What a server says on stderr: a JSON object a line, never what clients sent nor a token."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any, Final, TextIO

LEVELS: Final = ("debug", "info", "warning", "error")


class Log:
    """Lines of `level` and above."""

    def __init__(self, level: str = "info", stream: TextIO | None = None) -> None:
        self._least = LEVELS.index(level)
        self._stream = stream

    def __call__(self, level: str, event: str, **fields: Any) -> None:
        """Write one line: time, level, event, and what `fields` say."""
        if LEVELS.index(level) < self._least:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "level": level, "event": event, **fields}, default=str)
        stream = self._stream or sys.stderr
        try:
            stream.write(line + "\n")
            stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads it any more, which is no reason to stop serving


class LibraryLines(logging.Handler):
    """What libraries log, as lines of ours."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """One line; of an exception its kind, since its text may be a client's."""
        level = "error" if record.levelno >= logging.ERROR else "warning"
        kind = record.exc_info[0] if record.exc_info else None
        extra = {"exception": kind.__name__} if kind else {}
        self._log(level, "library", logger=record.name, message=record.getMessage()[:500], **extra)
