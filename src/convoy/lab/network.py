"""The lab's network: a namespace per machine, a switch between them, a rate on every link.

    machine "tower"                 switch                 machine "old"
    ┌──────────────┐   ┌─────────────────────────────┐   ┌──────────────┐
    │ eth0 ────────┼───┼─ p0 ──── bridge ──── p1 ────┼───┼──────── eth0 │
    │   d1 ────────┼───┼─────────────────────────────┼───┼───────── d0  │
    └──────────────┘   └─────────────────────────────┘   └──────────────┘
      tbf: what it       tbf: what it                      a link with figures of its own
      sends              receives                          has a cable of its own

The switch has a namespace too, so nothing is added to the computer's own network.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pyroute2
from pyroute2 import NetNS, netns
from pyroute2.netlink.exceptions import NetlinkError

from convoy.cluster import Cluster
from convoy.errors import LabError

# pyroute2 enters a namespace in a fork of this process, and ends that with SIGTERM. A handler of
# ours there, as Ray installs one, would go on with this program in the fork.
pyroute2.config.disable_mp_signal = True

SUBNET = "10.77.0"
BURST_BYTES = 16 * 1024
"""What a link that has rested lets pass at once: little, since real links let nothing."""
QUEUE_S = 0.05
"""How long bytes may wait on a link before it drops them."""
QUEUE_BYTES = 64 * 1024
"""There is room for so many at least: a kernel hands over as much in one piece."""
MTU = 1500


def build(cluster: Cluster, namespaces: Mapping[str, str]) -> None:
    """Make all namespaces and links. `namespaces` has the switch's under the empty name."""
    machines = cluster.real_machines
    for name in namespaces.values():
        netns.create(name)
    with NetNS(namespaces[""]) as switch:
        switch.link("add", ifname="bridge", kind="bridge")
        bridge = _index(switch, "bridge")
        switch.link("set", index=bridge, state="up")
        for number, machine in enumerate(machines):
            port = f"p{number}"
            peer = {"ifname": "eth0", "net_ns_fd": namespaces[machine.name]}
            switch.link("add", ifname=port, kind="veth", peer=peer)
            switch.link("set", index=_index(switch, port), master=bridge, state="up")
    for number, machine in enumerate(machines):
        with NetNS(namespaces[machine.name]) as inside:
            inside.link("set", index=_index(inside, "lo"), state="up")
            eth0 = _index(inside, "eth0")
            inside.addr("add", index=eth0, address=address(number), prefixlen=24)
            inside.link("set", index=eth0, state="up")
        set_uplink(namespaces, number, machine.name, cluster.network.bandwidth_bit_s)
    order = [machine.name for machine in machines]
    for link in cluster.links:
        if not set(link.between) <= set(order):
            continue  # to a machine that is not there
        _add_cable(namespaces, order, link.between)
        set_cable(namespaces, order, link.between, link.bandwidth_bit_s)


def address(number: int) -> str:
    """The IP address of the machine that stands at `number` in the cluster file."""
    return f"{SUBNET}.{number + 1}"


def set_uplink(
    namespaces: Mapping[str, str], number: int, machine: str, bandwidth_bit_s: float
) -> None:
    """Limit what `machine` sends to the switch, and what the switch sends to it."""
    for space, interface in ((namespaces[machine], "eth0"), (namespaces[""], f"p{number}")):
        with NetNS(space) as inside:
            _limit(inside, interface, bandwidth_bit_s)


def has_cable(namespaces: Mapping[str, str], order: list[str], between: tuple[str, str]) -> bool:
    """Whether two machines are joined by a cable of their own."""
    one, other = between
    with NetNS(namespaces[one]) as inside:
        return bool(inside.link_lookup(ifname=f"d{order.index(other)}"))


def _add_cable(namespaces: Mapping[str, str], order: list[str], between: tuple[str, str]) -> None:
    one, other = between
    first, second = order.index(one), order.index(other)
    with NetNS(namespaces[one]) as inside:
        inside.link(
            "add",
            ifname=f"d{second}",
            kind="veth",
            peer={"ifname": f"d{first}", "net_ns_fd": namespaces[other]},
        )
    for here, there in ((first, second), (second, first)):
        with NetNS(namespaces[order[here]]) as inside:
            index = _index(inside, f"d{there}")
            inside.link("set", index=index, state="up")
            inside.route(
                "add", dst=f"{address(there)}/32", oif=index, prefsrc=address(here), priority=10
            )


def set_cable(
    namespaces: Mapping[str, str],
    order: list[str],
    between: tuple[str, str],
    bandwidth_bit_s: float,
) -> None:
    """Limit a cable both ways; laid first if there is none yet."""
    if not has_cable(namespaces, order, between):
        _add_cable(namespaces, order, between)
    for here, there in (between, between[::-1]):
        with NetNS(namespaces[here]) as inside:
            _limit(inside, f"d{order.index(there)}", bandwidth_bit_s)


def cut(namespaces: Mapping[str, str], order: list[str], between: tuple[str, str]) -> None:
    """Let nothing through between two machines, as if the cable were pulled."""
    for here, there in (between, between[::-1]):
        with NetNS(namespaces[here]) as inside, _fine_if(errno.EEXIST):
            inside.route("add", dst=_host(order, there), type="blackhole", priority=1)


def mend(namespaces: Mapping[str, str], order: list[str], between: tuple[str, str]) -> None:
    """Undo `cut`."""
    for here, there in (between, between[::-1]):
        with NetNS(namespaces[here]) as inside, _fine_if(errno.ESRCH):
            inside.route("del", dst=_host(order, there), type="blackhole", priority=1)


@contextmanager
def _fine_if(code: int) -> Iterator[None]:
    """Within it, that error of the kernel's is none; another is a LabError."""
    try:
        yield
    except NetlinkError as error:
        if error.code != code:
            raise LabError(f"the kernel refuses to change a route: {error}") from None


def existing(namespaces: Mapping[str, str]) -> list[str]:
    """Those of the namespaces that are there."""
    return sorted(set(netns.listnetns()) & set(namespaces.values()))


def remove(namespaces: Mapping[str, str]) -> None:
    """Remove the namespaces, and with them all that is in them."""
    existing = set(netns.listnetns())
    for name in namespaces.values():
        if name in existing:
            netns.remove(name)


def _host(order: list[str], machine: str) -> str:
    return f"{address(order.index(machine))}/32"


def _limit(inside: NetNS, interface: str, bandwidth_bit_s: float) -> None:
    rate = max(1, int(bandwidth_bit_s / 8))
    burst = max(BURST_BYTES, rate // 1000)
    try:
        inside.tc(
            "replace",
            "tbf",
            _index(inside, interface),
            0x10000,
            parent=0xFFFFFFFF,
            rate=rate,
            burst=burst,
            limit=max(int(rate * QUEUE_S), QUEUE_BYTES) + burst,
        )
    except NetlinkError as error:
        raise LabError(
            f"this kernel does not limit a link's rate ({error}). The lab needs the token bucket "
            "filter: a kernel with CONFIG_NET_SCH_TBF, or `modprobe sch_tbf`"
        ) from None


def _index(inside: NetNS, interface: str) -> int:
    found: list[int] = list(inside.link_lookup(ifname=interface))
    if not found:
        raise LabError(f"the lab has lost its interface {interface}: take it down and up again")
    return found[0]
