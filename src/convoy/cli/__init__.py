"""The command `convoy`.

Exit status: 0 done, 1 it failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Any

from convoy.errors import ConvoyError, UsageError
from convoy.runtime.memory import collector_paused

LIGHT = (["run"], ["serve"])
"""Verbs of `convoy split` for machines that may have neither torch nor Ray."""


def main() -> None:
    """Run the command line; errors become one readable paragraph and an exit status."""
    try:
        if sys.argv[1:2] == ["split"] and sys.argv[2:3] in LIGHT:
            from convoy.cli.split.light import app as split

            split(args=sys.argv[2:], prog_name="convoy split")
        with collector_paused():
            try:
                app = _app()
            except UsageError:
                if sys.argv[1:2] != ["split"] or [a for a in sys.argv[2:] if a[:1] != "-"]:
                    raise
                from convoy.cli.split.light import app as split  # what there is help for

                split(args=sys.argv[2:], prog_name="convoy split")
        app()
    except UsageError as error:
        _fail(error, 2)
    except ConvoyError as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _app() -> Any:
    """All verbs; torch and Ray come with them."""
    try:
        from convoy.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("convoy"):
            raise
        raise UsageError(
            f"this installation lacks {error.name}: pip install 'convoy-cnn[train]' (only `convoy "
            "split run` and `convoy split serve` do without)"
        ) from None
    return app


def _fail(error: ConvoyError, status: int) -> None:
    from convoy.cli.console import complain

    complain(error)
    sys.exit(status)
