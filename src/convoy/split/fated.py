"""A `convoy` that ends when its parent does, however that ends.

python -m convoy.split.fated PARENT train --config FILE

PARENT is the parent's process id: it may have ended before this process could say that it wants
to know.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that the kernel sends when the parent is gone."""


def main() -> None:
    """Be `convoy` with the arguments behind the parent's id."""
    parent, *arguments = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit(1)
    sys.argv = ["convoy", *arguments]
    runpy.run_module("convoy", run_name="__main__")


if __name__ == "__main__":
    main()
