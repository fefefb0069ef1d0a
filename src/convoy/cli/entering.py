"""A command that names the cluster file of a lab that is up runs in that lab."""

from __future__ import annotations

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


def enter_lab(cluster: str | None) -> None:
    """Start this command anew on the first machine of the lab of `cluster`, if there is one."""
    if cluster is None or IN_A_LAB in os.environ or not LABS.is_dir():
        return
    if cluster == "ray" or cluster.startswith("ray://") or not any(LABS.glob("*.json")):
        return
    from convoy.lab import find, state  # stands on an optional package, which made what is there

    wanted = load_cluster(Path(cluster))
    for name in state.names():
        found = state.load(name)
        if found.ready and parse_cluster(found.cluster, source=name) == wanted:
            lab = find(name)
            first = next(iter(lab.addresses))
            sys.stderr.write(f"running in the lab {name}, on {first}\n")
            sys.stderr.flush()
            command = lab.command(first, [sys.executable, "-m", "convoy", *sys.argv[1:]])
            os.execvpe(command[0], command, lab.environment())
