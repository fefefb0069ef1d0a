"""Machines, what each has, and the links between them: the one description of a cluster.

    cluster = load_cluster("cluster.toml")
    cluster.machine("tower").cpus                       # 1.0
    cluster.link("tower", "old").bandwidth_bit_s        # 100000000.0

The same description is planned for, emulated and run on. What is wrong with one raises
`ClusterError`, which names the file, the entry, the key, what was found and what was
expected. Everything here is pure except `load_cluster`, which reads one file.
"""

from convoy.cluster.file import load_cluster, parse_cluster, to_toml
from convoy.cluster.model import Cluster, Link, Machine, Network
from convoy.cluster.units import (
    format_bandwidth,
    format_duration,
    format_flops,
    parse_bandwidth,
    parse_duration,
    parse_flops,
)

__all__ = [
    "Cluster",
    "Link",
    "Machine",
    "Network",
    "format_bandwidth",
    "format_duration",
    "format_flops",
    "load_cluster",
    "parse_bandwidth",
    "parse_cluster",
    "parse_duration",
    "parse_flops",
    "to_toml",
]
