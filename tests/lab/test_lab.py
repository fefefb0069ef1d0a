"""The lab on this computer: what it limits, and that nothing of it stays."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from convoy.cluster import parse_cluster, to_toml
from convoy.errors import LabError

pytest.importorskip("pyroute2", reason="the lab's optional package is not installed")

from pyroute2 import NetNS, netns
from pyroute2.netlink.exceptions import NetlinkError

from convoy import lab
from convoy.lab import cgroup, state
from convoy.lab import lab as module


def why_not() -> str:
    """What keeps this computer from having network namespaces and control groups; or nothing."""
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        return "needs root on Linux"
    name = f"probe{os.getpid()}"
    try:
        netns.create(name)
        netns.remove(name)
        folder = cgroup.folder_of(name, 0)
        cgroup.create(folder)
        cgroup.remove(folder)
    except (OSError, NetlinkError, LabError) as error:
        return f"cannot make namespaces or control groups here: {error}"
    return ""


needs_root = pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can")
CLUSTER = parse_cluster(
    """
    [[machine]]
    name = "tower"
    [[machine]]
    name = "old"
    cpus = 0.5
    [[machine]]
    name = "pi"
    cpus = 0.25
    [[machine]]
    name = "wish"
    like = "tower"
    [network]
    bandwidth = "80 Mbit/s"
    [[link]]
    between = ["tower", "old"]
    bandwidth = "16 Mbit/s"
    [[link]]
    between = ["tower", "wish"]
    bandwidth = "1 Mbit/s"
    """
)
PAIR = parse_cluster(
    """
    [[machine]]
    name = "tower"
    [[machine]]
    name = "old"
    cpus = 0.7
    """
)
NAME = f"t{os.getpid()}"

SEND = """
import socket, sys, time
megabytes = int(sys.argv[2])
link = socket.create_connection((sys.argv[1], 5000), timeout=20)
begun = time.perf_counter()
link.sendall(bytes(megabytes * 10**6))
link.shutdown(socket.SHUT_WR)
link.recv(1)
print(8 * megabytes / (time.perf_counter() - begun))
"""
RECEIVE = """
import socket
server = socket.create_server(("0.0.0.0", 5000))
print("listening", flush=True)
while True:
    link, _ = server.accept()
    while link.recv(1 << 16):
        pass
    link.close()
"""
SPIN = """
import time
begun, used = time.perf_counter(), time.process_time()
while time.perf_counter() - begun < 1:
    pass
print(time.process_time() - used)
"""
NODES = """
import ray
ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
print(*sorted(n["NodeName"] + "=" + n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"]))
"""
CRASH = """
import os, sys
from convoy import lab
from convoy.cluster import parse_cluster
lab.up(parse_cluster('[[machine]]\\nname = "tower"'), sys.argv[1], ray=False)
lab.find(sys.argv[1]).start("tower", ["sleep", "1000"])
os._exit(9)
"""


def python(machine: lab.Lab, where: str, code: str, *arguments: str) -> str:
    """What a Python program prints on a machine of the lab."""
    argv = [sys.executable, "-c", code, *arguments]
    done = machine.run(where, argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return str(done.stdout).strip()


def is_about(limit: float, found: float) -> bool:
    """Whether a limit holds, and is made use of. (Who else is at work here is not known.)"""
    return 0.6 * limit < found < 1.12 * limit


def traces() -> list[str]:
    """What there is of labs on this computer."""
    found = [name for name in netns.listnetns() if NAME in name]
    places = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu"), Path("/etc/netns"), Path("/tmp"))
    for folder in (*places, state.FOLDER):
        found += [str(p) for p in folder.glob(f"*{NAME}*")]
    return found


@pytest.fixture(scope="module")
def small() -> Iterator[lab.Lab]:
    """Three machines without Ray."""
    with lab.emulated(CLUSTER, NAME, ray=False) as found:
        yield found
    assert traces() == []


@pytest.fixture(scope="module")
def receiver(small: lab.Lab) -> Iterator[None]:
    """Machine "old" takes what it is sent."""
    argv = [sys.executable, "-c", RECEIVE]
    with small.start("old", argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        yield
        process.kill()


@needs_root
@pytest.mark.timeout(60)
def test_links_have_their_rates(small: lab.Lab, receiver: None) -> None:
    assert is_about(80, float(python(small, "pi", SEND, "old", "10")))
    assert is_about(16, float(python(small, "tower", SEND, "old", "2")))
    assert set(small.addresses) == {"tower", "old", "pi"}  # a wish is not there


@needs_root
@pytest.mark.timeout(60)
def test_a_link_is_changed_cut_and_mended(small: lab.Lab, receiver: None) -> None:
    small.set_bandwidth("pi", "old", 8e6)
    assert is_about(8, float(python(small, "pi", SEND, "old", "1")))
    small.cut("pi", "old")
    code = "import socket; socket.create_connection(('old', 5000), timeout=1)"
    argv = [sys.executable, "-c", code]
    assert small.run("pi", argv, capture_output=True).returncode != 0
    assert small.run("tower", argv, capture_output=True).returncode == 0
    assert lab.find(NAME).changed_links == {"old - pi": "cut"}
    small.cut("pi", "old")  # it is already
    small.mend("pi", "old")
    assert is_about(8, float(python(small, "pi", SEND, "old", "1")))
    small.mend("pi", "old")
    assert lab.find(NAME).changed_links == {"old - pi": "mended"}


@needs_root
def test_no_fork_of_this_process_goes_on_with_it(small: lab.Lab, tmp_path: Path) -> None:
    """Ray installs a handler such as this one: what it raises unwinds whatever runs."""

    def handle(*_: object) -> None:
        (tmp_path / str(os.getpid())).touch()
        os._exit(1)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        for bandwidth in range(1, 11):
            small.set_bandwidth("pi", "old", 1e6 * bandwidth)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not list(tmp_path.iterdir())


@needs_root
@pytest.mark.timeout(60)
def test_machines_have_their_share_of_the_cpu(small: lab.Lab) -> None:
    assert is_about(0.5, float(python(small, "old", SPIN)))
    assert is_about(0.25, float(python(small, "pi", SPIN)))
    assert small.cores("pi") == 0.25
    small.set_cores("pi", 0.5)
    assert lab.find(NAME).cores("pi") == 0.5
    assert is_about(0.5, float(python(small, "pi", SPIN)))


@needs_root
@pytest.mark.timeout(60)
def test_a_machine_is_frozen_thawed_and_killed(small: lab.Lab) -> None:
    count = "import time\nwhile True: print(1, flush=True); time.sleep(0.01)"
    argv = [sys.executable, "-c", count]
    with small.start("pi", argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(10)
        assert process.pid in small.processes("pi")
        small.freeze("pi")
        os.set_blocking(process.stdout.fileno(), False)
        time.sleep(0.5)
        process.stdout.read()
        time.sleep(0.5)
        assert not process.stdout.read()
        small.thaw("pi")
        deadline = time.monotonic() + 20
        while not process.stdout.read():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        small.kill("pi")
        assert process.wait(5) == -9
    assert small.processes("pi") == []


@needs_root
def test_a_lab_of_the_same_name_is_refused(small: lab.Lab) -> None:
    with pytest.raises(LabError, match=f"convoy lab down --name {NAME}"):
        lab.up(CLUSTER, NAME, ray=False)
    assert lab.find(NAME).addresses == small.addresses


@needs_root
def test_what_others_have_made_stays_theirs() -> None:
    """A namespace, a control group with a process in it, a folder of names of hosts."""
    name = f"o{os.getpid()}"
    space, group = f"convoy-{name}-1", cgroup.folder_of(name, 0)
    names = Path("/etc/netns") / f"convoy-{name}-switch"
    netns.create(space)
    try:
        with pytest.raises(LabError, match=f"namespace {space} is there already"):
            lab.up(CLUSTER, name, ray=False)
        assert space in netns.listnetns()
    finally:
        netns.remove(space)
    cgroup.create(group)
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            (group / "cgroup.procs").write_text(str(process.pid))
            with pytest.raises(LabError, match=f"{group} is there already"):
                lab.up(CLUSTER, name, ray=False)
            assert cgroup.processes(group) == [process.pid]
        finally:
            process.kill()
            process.wait()
            cgroup.remove(group)
    names.mkdir(parents=True)
    try:
        with pytest.raises(LabError, match=f"{names} is there already"):
            lab.up(CLUSTER, name, ray=False)
        assert names.is_dir()
    finally:
        names.rmdir()
    assert name not in state.names()


@needs_root
def test_what_is_not_there(small: lab.Lab) -> None:
    with pytest.raises(LabError, match="no lab called 'absent' is up"):
        lab.find("absent")
    with pytest.raises(LabError, match=r"unknown machine 'towr'. Nearest: tower"):
        small.run("towr", ["true"])
    with pytest.raises(LabError, match="unknown machine 'wish'"):
        small.cut("tower", "wish")


@needs_root
@pytest.mark.timeout(60)
def test_a_lab_whose_owner_crashed_is_taken_down() -> None:
    name = f"c{os.getpid()}"
    done = subprocess.run([sys.executable, "-c", CRASH, name], check=False, timeout=40)
    assert done.returncode == 9
    (pid,) = lab.find(name).processes("tower")
    lab.down(name)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert name not in state.names()
    assert not [found for found in netns.listnetns() if name in found]
    assert not list(Path("/etc/netns").glob(f"*{name}*"))


@needs_root
def test_a_kernel_without_tbf(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NetlinkError(2, "No such file or directory")

    monkeypatch.setattr(NetNS, "tc", refuse, raising=False)
    name = f"k{os.getpid()}"
    with pytest.raises(LabError, match="CONFIG_NET_SCH_TBF"):
        lab.up(CLUSTER, name, ray=False)
    assert name not in state.names()
    assert not [found for found in netns.listnetns() if name in found]


def test_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="needs root"):
        lab.up(CLUSTER, "lab")


@needs_root
@pytest.mark.parametrize("name", ["Lab", "a-b", "", "waytoolonganame"])
def test_names_that_will_not_do(name: str) -> None:
    with pytest.raises(LabError, match="small letters and digits"):
        lab.up(CLUSTER, name)


def test_a_lab_is_up_once_its_nodes_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of CPU time that the one machine's processes have used, a poll after another."""
    used = iter([0.0, 0.9, 1.3, 1.32, 9.0])
    monkeypatch.setattr(cgroup, "used_s", lambda pids: next(used))
    monkeypatch.setattr(module, "REST_POLL_S", 0.001)
    monkeypatch.setattr(module, "AT_REST", 50.0)
    monkeypatch.setattr(lab.Lab, "processes", lambda self, machine: [])
    alone = parse_cluster('[[machine]]\nname = "a"')
    module._await_rest(lab.Lab(state.LabState(name="x", cluster=to_toml(alone))))
    assert next(used) == 9.0


@needs_root
@pytest.mark.timeout(180)
def test_ray_runs_on_every_machine() -> None:
    name = f"r{os.getpid()}"
    with lab.emulated(PAIR, name) as whole:
        nodes = python(whole, "old", NODES).splitlines()[-1]
        assert nodes == "old=10.77.0.2 tower=10.77.0.1"
        assert whole.processes("old")
    assert name not in state.names()


def test_both_versions_of_control_groups(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").touch()
    cgroup.set_cores(tmp_path, 0.5)
    assert (tmp_path / "cpu.max").read_text() == "5000 10000"
    assert cgroup.cores(tmp_path) == 0.5
    cgroup.set_cores(tmp_path, None)
    assert (tmp_path / "cpu.max").read_text() == "max 10000"
    assert cgroup.cores(tmp_path) == math.inf
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu.cfs_burst_us").touch()
    cgroup.set_cores(tmp_path, 1.5)
    assert (tmp_path / "cpu.cfs_burst_us").read_text() == "5000"
    cgroup.set_cores(tmp_path, 0.25)
    assert (tmp_path / "cpu.cfs_burst_us").read_text() == "0"
    cgroup.set_cores(tmp_path, 1.5)
    assert (tmp_path / "cpu.cfs_quota_us").read_text() == "15000"
    assert cgroup.cores(tmp_path) == 1.5
