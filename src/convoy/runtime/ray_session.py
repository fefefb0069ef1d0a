"""Ray, started on this machine or joined where it runs; and left as it was found."""

from __future__ import annotations

import importlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray

OBJECT_STORE_BYTES = 512 * 1024**2
"""For handing over jobs and checkpoints; Ray's own default is 30% of memory."""
RANK_IMPORTS = ["convoy.runtime.rank_imports"]
"""What processes of a Ray of our own import while Ray itself still starts."""

_raylets: list[psutil.Process] = []
"""The one that was started here, if one was."""


@contextmanager
def session() -> Iterator[None]:
    """Within it Ray may be started or joined; afterwards it is as it was before."""
    mine = not ray.is_initialized()
    token = os.environ.get("RAY_AUTH_MODE")
    try:
        yield
    finally:
        _raylets.clear()
        if mine and ray.is_initialized():
            ray.shutdown()
        if mine and token is None:  # a Ray of our own leaves it behind, and it binds later ones
            os.environ.pop("RAY_AUTH_MODE", None)


def start_local(num_ranks: int, *, verbose: bool) -> None:
    """Have a Ray on this machine's loopback, with processes for `num_ranks` ranks."""
    if ray.is_initialized():
        return
    free = psutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    _init(
        verbose=verbose,
        address="local",
        _node_ip_address="127.0.0.1",
        num_cpus=num_ranks,
        include_dashboard=False,
        object_store_memory=max(80 * 1024**2, min(OBJECT_STORE_BYTES, int(free * 0.8))),
        _system_config={"preload_python_modules": RANK_IMPORTS},
    )
    children = psutil.Process().children(recursive=True)
    _raylets.extend(child for child in children if child.name() == "raylet")


def is_lost() -> bool:
    """Whether the Ray that was started here has died: its ranks die with it."""
    return any(not r.is_running() or r.status() == psutil.STATUS_ZOMBIE for r in _raylets)


def join(address: str, *, verbose: bool) -> None:
    """Join the Ray cluster at `address`. Raises what ray.init does."""
    if not ray.is_initialized():
        _init(verbose=verbose, address=address)


def _init(*, verbose: bool, **arguments: Any) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    level = logging.INFO if verbose else logging.ERROR
    ray.init(**arguments, log_to_driver=verbose, logging_level=level)
    if not verbose:
        _silence_raylet()


def _silence_raylet() -> None:
    """Keep what Ray says of lost workers off the terminal: the crew says it in its own words.

    Ray prints these whatever `log_to_driver` is; its filter for repeated lines can drop them.
    """
    ray_logging = importlib.import_module("ray._private.ray_logging")
    filter_ = getattr(ray_logging, "stdout_deduplicator", None)
    if filter_ is not None and hasattr(filter_, "skip_re"):
        filter_.skip_re = re.compile("")
