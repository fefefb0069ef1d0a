"""A cluster as a TOML file.

[[machine]]
name = "tower"
cpus = 1.0                # cores a worker may use (default 1.0)
gpus = 0                  # (default 0)
address = "10.0.0.5"      # optional: an IP address or host name
flops = "9.5 TFLOP/s"     # optional: what each device achieves, for `convoy simulate`
within = "80 GB/s"        # optional: between its own devices, likewise

[[machine]]
name = "old"
cpus = 0.5

[[machine]]
name = "wish"             # not there: planned for as if it were
like = "tower"            # with tower's cpus and gpus, unless it gives its own,
speed = 0.5               # and half as fast (default 1.0)

[network]                 # every link, unless told otherwise
bandwidth = "1 Gbit/s"    # (default 1 Gbit/s)
latency = "0.1 ms"        # one way (default 0.1 ms)

[[link]]
between = ["tower", "old"]
bandwidth = "100 Mbit/s"  # and the network's latency
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from convoy.cluster.model import Cluster, Link, Machine, Network, fault, like_chain
from convoy.cluster.units import (
    format_bandwidth,
    format_duration,
    format_flops,
    parse_bandwidth,
    parse_duration,
    parse_flops,
)
from convoy.errors import ClusterError, describe_unknown

Table = Mapping[str, object]
Absent = TypeVar("Absent", float, None)

MACHINE_KEYS = ("name", "cpus", "gpus", "address", "like", "speed", "flops", "within")
EXAMPLES = {
    "bandwidth": '"1 Gbit/s"',
    "latency": '"0.1 ms"',
    "flops": '"9.5 TFLOP/s"',
    "within": '"80 GB/s"',
}


def load_cluster(path: str | Path) -> Cluster:
    """The cluster in the file at `path`. ClusterError if it is missing, unreadable or wrong."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ClusterError(
            f"{path}: no such file; expected a cluster file, which is at its shortest "
            '[[machine]] and, on the next line, name = "tower"'
        ) from None
    except UnicodeDecodeError as error:
        raise ClusterError(f"{path}: byte {error.start} is not UTF-8; expected TOML") from None
    except OSError as error:
        raise ClusterError(f"{path}: cannot be read ({error.strerror})") from None
    return parse_cluster(text, source=str(path))


def parse_cluster(text: str, source: str = "cluster") -> Cluster:
    """The cluster that TOML `text` describes; errors (ClusterError) begin with `source`."""
    with located(source):
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            # It ends in '(at line 3, column 5)', but for what the end of the file cuts short.
            line = "" if "line" in str(error) else f", line {len(text.splitlines())}"
            raise ClusterError(f"not valid TOML: {error}{line}") from None
        check_keys(document, ("machine", "network", "link"))
        entries = read_entries(document, "machine")
        network = read_network(document)
        cluster = Cluster(
            machines=tuple(read_machine(entry, i) for i, entry in enumerate(entries, start=1)),
            network=network,
            links=tuple(
                read_link(entry, i, network)
                for i, entry in enumerate(read_entries(document, "link"), start=1)
            ),
        )
        return replace(cluster, machines=inherit(cluster.machines, entries))


def to_toml(cluster: Cluster) -> str:
    """`cluster` as a file's text, which `parse_cluster` turns back into an equal cluster."""
    blocks = []
    for machine in cluster.machines:
        lines = ["[[machine]]", f"name = {quote(machine.name)}"]
        if machine.address is not None:
            lines.append(f"address = {quote(machine.address)}")
        lines += [f"cpus = {float(machine.cpus)!r}", f"gpus = {machine.gpus}"]
        if machine.like is not None:
            lines += [f"like = {quote(machine.like)}", f"speed = {float(machine.speed)!r}"]
        if machine.flops is not None:
            lines.append(f"flops = {quote(format_flops(machine.flops))}")
        if machine.within_bit_s is not None:
            lines.append(f"within = {quote(format_bandwidth(machine.within_bit_s))}")
        blocks.append(lines)
    blocks.append(["[network]", *figures(cluster.network)])
    for link in cluster.links:
        names = ", ".join(quote(name) for name in link.between)
        blocks.append(["[[link]]", f"between = [{names}]", *figures(link)])
    return "\n\n".join("\n".join(lines) for lines in blocks) + "\n"


def figures(item: Network | Link) -> list[str]:
    """The two lines that say how much and how soon."""
    return [
        f"bandwidth = {quote(format_bandwidth(item.bandwidth_bit_s))}",
        f"latency = {quote(format_duration(item.latency_s))}",
    ]


def quote(text: str) -> str:
    """A TOML basic string; `text` is printable, so nothing else needs escaping."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def inherit(machines: Sequence[Machine], entries: Sequence[Table]) -> tuple[Machine, ...]:
    """`machines` with the cpus and gpus that they leave out taken from those they are like."""
    given = {m.name: entry for m, entry in zip(machines, entries, strict=True)}
    by_name = {m.name: m for m in machines}
    resolved = []
    for machine in machines:
        chain = [by_name[n] for n in like_chain(machine.name, {m.name: m.like for m in machines})]
        cpus = next((m.cpus for m in chain if "cpus" in given[m.name]), Machine.cpus)
        gpus = next((m.gpus for m in chain if "gpus" in given[m.name]), Machine.gpus)
        resolved.append(replace(machine, cpus=cpus, gpus=gpus))
    return tuple(resolved)


def read_machine(entry: Table, number: int) -> Machine:
    """The `number`th [[machine]], with defaults where its `like` may yet say otherwise."""
    name = entry.get("name")
    with located(f"[[machine]] {number}" + (f" ({name!r})" if isinstance(name, str) else "")):
        check_keys(entry, MACHINE_KEYS)
        if not isinstance(name, str):
            fault("name", name, "a name in quotes")
        if "speed" in entry and "like" not in entry:
            fault("like", None, "the machine that 'speed' is relative to")
        return Machine(
            name=name,
            cpus=read_number(entry, "cpus", Machine.cpus),
            gpus=read_whole(entry, "gpus", Machine.gpus),
            address=read_text(entry, "address"),
            like=read_text(entry, "like"),
            speed=read_number(entry, "speed", Machine.speed),
            flops=read_quantity(entry, "flops", parse_flops, None),
            within_bit_s=read_quantity(entry, "within", parse_bandwidth, None),
        )


def read_network(document: Table) -> Network:
    """[network], with defaults for what it leaves out."""
    with located("[network]"):
        entry = document.get("network", {})
        if not isinstance(entry, dict):
            raise ClusterError(f"found {entry!r}, expected one table headed [network]")
        check_keys(entry, ("bandwidth", "latency"))
        return Network(
            bandwidth_bit_s=read_quantity(
                entry, "bandwidth", parse_bandwidth, Network.bandwidth_bit_s
            ),
            latency_s=read_quantity(entry, "latency", parse_duration, Network.latency_s),
        )


def read_link(entry: Table, number: int, network: Network) -> Link:
    """The `number`th [[link]]; what it leaves out is the network's."""
    with located(f"[[link]] {number}"):
        check_keys(entry, ("between", "bandwidth", "latency"))
        match entry.get("between"):
            case [str(a), str(b)]:
                between = (a, b)
            case found:
                fault("between", found, 'two names of machines, such as ["tower", "old"]')
        return Link(
            between=between,
            bandwidth_bit_s=read_quantity(
                entry, "bandwidth", parse_bandwidth, network.bandwidth_bit_s
            ),
            latency_s=read_quantity(entry, "latency", parse_duration, network.latency_s),
        )


def read_entries(document: Table, key: str) -> list[dict[str, object]]:
    """The tables headed [[key]]."""
    found = document.get(key, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ClusterError(f"key {key!r}: expected tables headed [[{key}]], in double brackets")
    return found


def read_text(entry: Table, key: str) -> str | None:
    """A string, or None where the key is absent."""
    found = entry.get(key)
    if found is not None and not isinstance(found, str):
        fault(key, found, "text in quotes")
    return found


def read_number(entry: Table, key: str, default: float) -> float:
    """A float, written with a point or without."""
    found = entry.get(key, default)
    # A bool is an int to Python, and never a count of cores to a person.
    if isinstance(found, bool) or not isinstance(found, int | float):
        fault(key, found, "a number")
    try:
        return float(found)
    except OverflowError:
        fault(key, found, "a finite number")


def read_whole(entry: Table, key: str, default: int) -> int:
    """An int."""
    found = entry.get(key, default)
    if isinstance(found, bool) or not isinstance(found, int):
        fault(key, found, "a whole number")
    return found


def read_quantity(
    entry: Table, key: str, parse: Callable[[str], float], default: Absent
) -> float | Absent:
    """A figure with a unit, in quotes."""
    if key not in entry:
        return default
    found = entry[key]
    if not isinstance(found, str):
        fault(key, found, f"a figure with a unit, in quotes, such as {EXAMPLES[key]}")
    with located(f"key {key!r}"):
        return parse(found)


def check_keys(entry: Table, known: Sequence[str]) -> None:
    """Refuse a key that means nothing here, offering the nearest that does."""
    for key in entry:
        if key not in known:
            raise ClusterError(describe_unknown("key", key, known))


@contextmanager
def located(where: str) -> Iterator[None]:
    """Begin the message of any ClusterError inside with `where`."""
    try:
        yield
    except ClusterError as error:
        raise ClusterError(f"{where}: {error}") from None
