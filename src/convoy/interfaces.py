"""Network interfaces of this machine, and which of them carries an address.

    os.environ["GLOO_SOCKET_IFNAME"] = interface_of("10.0.0.5")     # "eth0"

Left to itself, gloo takes the address that the host name resolves to, which often is
127.0.1.1 or one that is out of date, and falls back on loopback; no other machine reaches
such a rank. So whoever forms a process group says which interface it is to use.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from convoy.errors import ClusterError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, kw_only=True)
class Interface:
    """One network interface."""

    name: str
    """As the system calls it: lo, eth0, wlan0, ..."""
    addresses: tuple[str, ...]
    """IPv4, then IPv6 addresses, without zone ('%eth0') and prefix length."""
    is_up: bool
    """Whether it is in use."""
    is_loopback: bool
    """Whether it reaches this machine only."""


def list_interfaces() -> list[Interface]:
    """Every interface of this machine, by name."""
    statistics = psutil.net_if_stats()
    interfaces = []
    for name, entries in sorted(psutil.net_if_addrs().items()):
        addresses = [
            entry.address.partition("%")[0]
            for family in (socket.AF_INET, socket.AF_INET6)
            for entry in entries
            if entry.family == family
        ]
        state = statistics.get(name)
        interfaces.append(
            Interface(
                name=name,
                addresses=tuple(addresses),
                is_up=state is not None and state.isup,
                is_loopback=any(is_loopback(address) for address in addresses),
            )
        )
    return interfaces


def interface_of(address: str) -> str:
    """The name of the interface that carries IPv4 or IPv6 `address`, ready for gloo.

    Raises:
        ClusterError: `address` is not an IP address, or no interface carries it.
    """
    return find_interface(address, list_interfaces()).name


def find_interface(address: str, interfaces: Sequence[Interface]) -> Interface:
    """The one of `interfaces` that carries `address`; raises as `interface_of` does."""
    wanted, zone = parse_address(address), address.partition("%")[2]
    for interface in interfaces:
        # A link-local IPv6 address may be the same on several; its zone says which is meant.
        if zone in ("", interface.name) and wanted in (
            parse_address(own) for own in interface.addresses
        ):
            return interface
    for interface in interfaces:
        # All of 127.0.0.0/8 is loopback, though only 127.0.0.1 is listed; Debian's /etc/hosts
        # gives the host name 127.0.1.1.
        if wanted.is_loopback and wanted.version == 4 and "127.0.0.1" in interface.addresses:
            return interface
    known = ", ".join(f"{own} ({i.name})" for i in interfaces for own in i.addresses)
    raise ClusterError(
        f"no network interface of this machine carries {address}; it has {known or 'none'}. "
        "Give the machine one of those addresses."
    )


def is_loopback(address: str) -> bool:
    """Whether `address` reaches this machine only; ClusterError if it is no IP address."""
    return parse_address(address).is_loopback


def parse_address(address: str) -> Address:
    """An IP address without its zone; an IPv4 one in IPv6's clothes (::ffff:1.2.3.4) as IPv4."""
    try:
        parsed = ipaddress.ip_address(address.strip().partition("%")[0])
    except ValueError:
        raise ClusterError(
            f"{address!r} is not an IP address; expected one such as 10.0.0.5 or fd00::5"
        ) from None
    return getattr(parsed, "ipv4_mapped", None) or parsed
