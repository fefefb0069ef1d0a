"""Interfaces: of this machine, and of machines as they might be."""

from __future__ import annotations

import pytest

from convoy.errors import ClusterError
from convoy.interfaces import (
    Interface,
    find_interface,
    interface_of,
    is_loopback,
    list_interfaces,
)

LOOPBACK = Interface(name="lo", addresses=("127.0.0.1", "::1"), is_up=True, is_loopback=True)
WIRED = Interface(
    name="eth0", addresses=("10.0.0.5", "fd00::5", "fe80::1"), is_up=True, is_loopback=False
)
WIRELESS = Interface(
    name="wlan0", addresses=("192.168.1.7", "fe80::1"), is_up=True, is_loopback=False
)
ALL = [LOOPBACK, WIRED, WIRELESS]


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("127.0.0.1", "lo"),
        ("127.0.1.1", "lo"),
        ("::1", "lo"),
        ("10.0.0.5", "eth0"),
        ("::ffff:10.0.0.5", "eth0"),
        ("fd00:0:0::5", "eth0"),
        ("fe80::1", "eth0"),
        ("fe80::1%wlan0", "wlan0"),
    ],
)
def test_the_interface_that_carries_an_address(address: str, name: str) -> None:
    assert find_interface(address, ALL).name == name


def test_an_address_of_another_machine_names_those_of_this_one() -> None:
    with pytest.raises(ClusterError, match=r"10\.0\.0\.6; it has .*10\.0\.0\.5 \(eth0\)"):
        find_interface("10.0.0.6", ALL)


@pytest.mark.parametrize("address", ["", "tower", "10.0.0", "10.0.0.5:80"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ClusterError, match="not an IP address"):
        interface_of(address)
    with pytest.raises(ClusterError, match="not an IP address"):
        is_loopback(address)


def test_loopback_addresses() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"]))
    assert not any(map(is_loopback, ["10.0.0.5", "fe80::1%lo", "0.0.0.0"]))


def test_this_machine() -> None:
    interfaces = list_interfaces()
    (loopback,) = [interface for interface in interfaces if interface.is_loopback]
    assert loopback.is_up
    assert interface_of("127.0.0.1") == loopback.name
    for interface in interfaces:
        for address in interface.addresses:
            if not address.startswith("fe80"):
                assert interface_of(address) == interface.name
