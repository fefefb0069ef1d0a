"""The command `convoy`.

Exit status: 0 done, 1 it failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys

from convoy.errors import ConvoyError, UsageError
from convoy.runtime.memory import collector_paused


def main() -> None:
    """Run the command line; errors become one readable paragraph and an exit status."""
    try:
        with collector_paused():
            from convoy.cli.app import app  # torch and Ray with it
        app()
    except UsageError as error:
        _fail(error, 2)
    except ConvoyError as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(error: ConvoyError, status: int) -> None:
    from convoy.cli.console import complain

    complain(error)
    sys.exit(status)
