"""A command that names the cluster file of a lab that is up runs in that lab."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

from convoy.cluster import load_cluster, parse_cluster
from convoy.runtime.settings import read_config

IN_A_LAB = "CONVOY_LAB"
LABS = Path("/run/convoy-lab")


def cluster_named(cluster: str | None, config: Path | None, resume: Path | None) -> str | None:
    """The cluster that a command is for: as its flag says, its config file, the resumed run."""
    told = cluster
    if told is None and config is not None and config.is_file():
        told = read_config(config).get("cluster")
    if told is None and resume is not None and (resume / "run.toml").is_file():
        told = read_config(resume / "run.toml").get("cluster")
    return told


def _labs() -> dict[str, str]:
    """The cluster files' texts of the labs that are up, by name; what cannot be read is none."""
    found: dict[str, str] = {}
    for path in LABS.glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            state = json.loads(path.read_text(encoding="utf-8"))
            if state["ready"]:
                found[path.stem] = state["cluster"]
    return found


def enter_lab(cluster: str | None) -> None:
    """Start this command anew on the first machine of the lab of `cluster`, if there is one."""
    if cluster is None or IN_A_LAB in os.environ or not LABS.is_dir():
        return
    if cluster == "ray" or cluster.startswith("ray://") or not any(LABS.glob("*.json")):
        return
    wanted = load_cluster(Path(cluster))
    for name, text in sorted(_labs().items()):
        if parse_cluster(text, source=name) == wanted:
            from convoy.lab import check_possible, find  # stands on an optional package

            check_possible()
            lab = find(name)
            first = next(iter(lab.addresses))
            sys.stderr.write(f"running in the lab {name}, on {first}\n")
            sys.stderr.flush()
            command = lab.command(first, [sys.executable, "-m", "convoy", *sys.argv[1:]])
            os.execvpe(command[0], command, lab.environment())
