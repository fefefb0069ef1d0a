"""A cluster of unequal machines, emulated on one Linux computer.

    with lab.emulated(load_cluster("cluster.toml")) as cluster_lab:
        cluster_lab.run("tower", ["convoy", "train", "--cluster", "cluster.toml"])

Each machine is a network namespace (`network.py`) and a control group that limits its CPU
(`cgroup.py`), with a Ray node in it. What is made is written down first (`state.py`), so that
`down` finds all of it, also after its owner has died, and nothing else.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convoy.cluster import Cluster, format_bandwidth, parse_cluster, to_toml
from convoy.errors import LabError, describe_unknown
from convoy.lab import cgroup, network, state
from convoy.lab.state import LabState

RAY_PORT = 6379
RAY_START_S = 90.0
RAY_ATTEMPTS = 3
AT_REST = 0.05
"""Of a core, that a machine's processes use when they have nothing to do."""
REST_POLL_S, REST_PATIENCE_S = 1.0, 30.0
OBJECT_STORE_BYTES = 100 * 1024**2
ARRIVAL_POLL_S = 0.002
ETC_NETNS = Path("/etc/netns")
"""`ip netns exec NAME` puts the files of NAME/ here in place of those in /etc."""
# In the group first: `ip netns exec` mounts a /sys of its own.
ENTER = 'echo $$ > "$1/cgroup.procs" && shift && exec ip netns exec "$@"'


class Lab:
    """A lab that is up."""

    def __init__(self, found: LabState) -> None:
        self._state = found
        self.cluster: Cluster = parse_cluster(found.cluster, source=f"lab {found.name}")

    @property
    def name(self) -> str:
        """What it is called."""
        return self._state.name

    @property
    def addresses(self) -> Mapping[str, str]:
        """IP address by machine."""
        return self._state.addresses

    def command(self, machine: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` on `machine`."""
        self._check(machine)
        place = self._state
        enter = [place.cgroups[machine], place.namespaces[machine]]
        return ["sh", "-c", ENTER, "sh", *enter, *argv]

    def environment(self) -> dict[str, str]:
        """This process's environment, with which commands find the lab's Ray."""
        head = next(iter(self.addresses.values()))
        ours = {
            "CONVOY_LAB": self.name,
            "RAY_ADDRESS": f"{head}:{RAY_PORT}",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        return os.environ | ours

    def run(
        self, machine: str, argv: Sequence[str], **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        """Run a command on `machine`; `options` are those of subprocess.run."""
        options.setdefault("env", self.environment())
        return subprocess.run(self.command(machine, argv), check=False, **options)

    def start(self, machine: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command on `machine`; `options` are those of subprocess.Popen.

        On return the command is on the machine, so that `freeze` and `down` reach it.
        """
        options.setdefault("env", self.environment())
        process = subprocess.Popen(self.command(machine, argv), **options)
        folder = Path(self._state.cgroups[machine])
        while process.pid not in cgroup.processes(folder) and process.poll() is None:
            time.sleep(ARRIVAL_POLL_S)
        return process

    def set_bandwidth(self, a: str, b: str, bandwidth_bit_s: float) -> None:
        """Give two machines a link of their own with this bandwidth, from now on."""
        pair = self._pair(a, b)
        network.set_cable(self._state.namespaces, self._order, pair, bandwidth_bit_s)
        self._note(pair, format_bandwidth(bandwidth_bit_s))

    def cut(self, a: str, b: str) -> None:
        """Let nothing through between two machines."""
        pair = self._pair(a, b)
        network.cut(self._state.namespaces, self._order, pair)
        self._note(pair, "cut")

    def mend(self, a: str, b: str) -> None:
        """Undo `cut`."""
        pair = self._pair(a, b)
        network.mend(self._state.namespaces, self._order, pair)
        self._note(pair, "mended")

    def set_cores(self, machine: str, cores: float) -> None:
        """Change how much of the CPU a machine has."""
        self._check(machine)
        cgroup.set_cores(Path(self._state.cgroups[machine]), cores)

    def freeze(self, machine: str) -> None:
        """Stop all processes of a machine where they are."""
        self._signal(machine, signal.SIGSTOP)

    def thaw(self, machine: str) -> None:
        """Let a frozen machine go on."""
        self._signal(machine, signal.SIGCONT)

    def kill(self, machine: str) -> None:
        """Kill all processes of a machine, Ray's too: as if the plug were pulled."""
        self._signal(machine, signal.SIGKILL)

    def cores(self, machine: str) -> float:
        """The cores that a machine has now."""
        self._check(machine)
        return cgroup.cores(Path(self._state.cgroups[machine]))

    @property
    def changed_links(self) -> Mapping[str, str]:
        """What has become of links since the lab is up, by "a - b"."""
        return self._state.links

    @property
    def is_ready(self) -> bool:
        """Whether it was built to the end."""
        return self._state.ready

    def processes(self, machine: str) -> list[int]:
        """Process ids on a machine."""
        self._check(machine)
        return cgroup.processes(Path(self._state.cgroups[machine]))

    @property
    def _order(self) -> list[str]:
        return [machine.name for machine in self.cluster.real_machines]

    def _pair(self, a: str, b: str) -> tuple[str, str]:
        for machine in (a, b):
            self._check(machine)
        return self.cluster.link(a, b).between

    def _note(self, pair: tuple[str, str], what: str) -> None:
        self._state.links[" - ".join(pair)] = what
        self._state.save()

    def _check(self, machine: str) -> None:
        if machine not in self._state.cgroups:
            known = list(self._state.cgroups)
            raise LabError(f"lab {self.name}: {describe_unknown('machine', machine, known)}")

    def _signal(self, machine: str, number: signal.Signals) -> None:
        self._check(machine)
        cgroup.signal_all(Path(self._state.cgroups[machine]), number)


def find(name: str = "lab") -> Lab:
    """The lab called `name`, if it is up. Raises LabError."""
    return Lab(state.load(name))


def up(cluster: Cluster, name: str = "lab", *, ray: bool = True) -> Lab:
    """Build the lab of `cluster`, with a Ray node on every machine unless `ray` is False.

    Raises:
        LabError: this computer cannot (the message says what it lacks), or a lab of that name is
            there already. Nothing is left behind.
    """
    check_possible()
    if re.fullmatch(r"[a-z][a-z0-9]{0,11}", name) is None:
        raise LabError(f"lab {name!r}: expected up to 12 small letters and digits, a letter first")
    machines = cluster.real_machines
    built = LabState(name=name, cluster=to_toml(cluster))
    built.namespaces = {m.name: f"convoy-{name}-{i}" for i, m in enumerate(machines)}
    built.namespaces[""] = f"convoy-{name}-switch"
    built.addresses = {m.name: network.address(i) for i, m in enumerate(machines)}
    built.cgroups = {m.name: str(cgroup.folder_of(name, i)) for i, m in enumerate(machines)}
    built.folder = f"{tempfile.gettempdir()}/convoy-lab-{name}-{secrets.token_hex(4)}"
    if name not in state.names():
        _refuse_foreign(built)
    built.claim()
    try:
        for group in built.cgroups.values():
            cgroup.create(Path(group))
        Path(built.folder).mkdir(mode=0o700)
        network.build(cluster, built.namespaces)
        _name_hosts(built)
        lab = Lab(built)
        if ray:
            _start_ray(lab, built.folder)
            _await_rest(lab)
        for machine in machines:  # after Ray, which takes its time to start on a tenth of a core
            lab.set_cores(machine.name, machine.cpus)
        built.ready = True
        built.save()
    except BaseException:
        down(name)
        raise
    return lab


def _refuse_foreign(planned: LabState) -> None:
    """Raise LabError if something is there already that the lab would make, and later remove."""
    taken = [f"the network namespace {n}" for n in network.existing(planned.namespaces)]
    folders = [*map(Path, planned.cgroups.values())]
    folders += [ETC_NETNS / namespace for namespace in planned.namespaces.values()]
    taken += [str(folder) for folder in folders if folder.exists()]
    if taken:
        raise LabError(
            f"lab {planned.name!r} cannot be built: {taken[0]} is there already, and no lab that "
            "is known here has made it. Take another --name, or remove it"
        )


def down(name: str = "lab") -> None:
    """Unmake a lab, whatever state it is in: its processes, namespaces, groups and files.

    Raises:
        LabError: there is none of that name, or a process does not end.
    """
    found = state.load(name)
    for folder in map(Path, found.cgroups.values()):
        if folder.is_dir():
            cgroup.set_cores(folder, None)  # what is slow to run is slow to end
            cgroup.end_all(folder)
    network.remove(found.namespaces)
    for folder in map(Path, found.cgroups.values()):
        cgroup.remove(folder)
    for namespace in found.namespaces.values():
        shutil.rmtree(ETC_NETNS / namespace, ignore_errors=True)
    if found.folder:
        shutil.rmtree(found.folder, ignore_errors=True)
    found.path.unlink(missing_ok=True)  # somebody else may take it down just now


@contextmanager
def emulated(cluster: Cluster, name: str = "lab", *, ray: bool = True) -> Iterator[Lab]:
    """The lab of `cluster`, up while it is entered."""
    lab = up(cluster, name, ray=ray)
    try:
        yield lab
    finally:
        down(name)


def check_possible() -> None:
    """Raise LabError, saying what is missing, if this computer cannot have a lab."""
    if not sys.platform.startswith("linux"):
        raise LabError("the lab needs Linux: it is made of network namespaces and control groups")
    if os.geteuid() != 0:
        raise LabError(
            "the lab needs root, to make network namespaces and control groups: run it with sudo"
        )
    if shutil.which("ip") is None:
        raise LabError("the lab needs `ip`: install iproute2")


def _name_hosts(built: LabState) -> None:
    """Machines know one another by name, and ask no name server, which none of them reaches."""
    lines = ["127.0.0.1 localhost", *(f"{a} {name}" for name, a in built.addresses.items())]
    for namespace in built.namespaces.values():
        folder = ETC_NETNS / namespace
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts").write_text("\n".join(lines) + "\n")
        (folder / "resolv.conf").write_text("options timeout:1 attempts:1\n")


def _start_ray(lab: Lab, folder: str) -> None:
    """Start a node on every machine, the first one's as head.

    One after the other: the nodes share a session's folder, and two that start at once may take
    the same name for their sockets in it.
    """
    ray = str(Path(sys.executable).parent / "ray")
    head = f"{next(iter(lab.addresses.values()))}:{RAY_PORT}"
    for number, machine in enumerate(lab.cluster.real_machines):
        where = ["--head", f"--port={RAY_PORT}", "--include-dashboard=false"]
        where += [f"--temp-dir={folder}"]
        command = [ray, "start", *(where if number == 0 else [f"--address={head}"])]
        command += [f"--node-ip-address={lab.addresses[machine.name]}"]
        command += [f"--node-name={machine.name}", f"--num-cpus={math.ceil(machine.cpus)}"]
        command += ["--num-gpus=0", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        _start_node(lab, machine.name, [*command, "--disable-usage-stats"])


def _await_rest(lab: Lab) -> None:
    """Wait until nodes do nothing any more, or for a while.

    Ray's agents go on starting after `ray start`, which would take a tenth of a core for a minute.
    """
    deadline = time.monotonic() + REST_PATIENCE_S
    machines = lab.cluster.real_machines
    used, busy = [cgroup.used_s(lab.processes(m.name)) for m in machines], True
    while busy and time.monotonic() < deadline:
        time.sleep(REST_POLL_S)
        now = [cgroup.used_s(lab.processes(m.name)) for m in machines]
        busy = any(b - a > AT_REST * REST_POLL_S for a, b in zip(used, now, strict=True))
        used = now


def _start_node(lab: Lab, machine: str, command: list[str]) -> None:
    environment = lab.environment()
    del environment["RAY_ADDRESS"]
    for left in reversed(range(RAY_ATTEMPTS)):
        with tempfile.TemporaryFile("w+") as said:  # not a pipe: Ray's daemons would keep it open
            process = lab.start(
                machine,
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
            try:
                status = process.wait(RAY_START_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                reason = f"it took longer than {RAY_START_S:.0f} s"
            else:
                if status == 0:
                    return
                said.seek(0)
                reason = (said.read().strip().splitlines() or ["it said nothing"])[-1]
        # Ray gives its own daemons 30 s, which a busy computer may exceed.
        lab.kill(machine)
        if not left:
            raise LabError(f"Ray did not start on {machine}, in {RAY_ATTEMPTS} attempts: {reason}")
