"""Cluster files: what they mean, what is refused and in which words, and the way back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.cluster import (
    Cluster,
    Link,
    Machine,
    Network,
    format_bandwidth,
    format_duration,
    format_flops,
    load_cluster,
    parse_bandwidth,
    parse_cluster,
    parse_duration,
    parse_flops,
    to_toml,
)
from convoy.errors import ClusterError

THREE = """
[[machine]]
name = "tower"
cpus = 4
gpus = 1
address = "10.0.0.5"

[[machine]]
name = "old"
cpus = 0.5

[[machine]]
name = "wish"
like = "tower"
speed = 0.5

[network]
bandwidth = "1 Gbit/s"
latency = "0.2 ms"

[[link]]
between = ["old", "tower"]
bandwidth = "100 Mbit/s"
"""


def test_a_file_becomes_machines_and_links() -> None:
    cluster = parse_cluster(THREE)
    assert cluster.machines == (
        Machine(name="tower", cpus=4.0, gpus=1, address="10.0.0.5"),
        Machine(name="old", cpus=0.5),
        Machine(name="wish", cpus=4.0, gpus=1, like="tower", speed=0.5),
    )
    assert cluster.network == Network(bandwidth_bit_s=1e9, latency_s=2e-4)
    assert cluster.links == (Link(between=("old", "tower"), bandwidth_bit_s=1e8, latency_s=2e-4),)


def test_a_link_is_the_same_from_both_ends_and_else_the_network() -> None:
    cluster = parse_cluster(THREE)
    assert cluster.link("tower", "old") == cluster.link("old", "tower") == cluster.links[0]
    default = Link(between=("tower", "wish"), bandwidth_bit_s=1e9, latency_s=2e-4)
    assert cluster.link("wish", "tower") == cluster.link("tower", "wish") == default
    with pytest.raises(ClusterError, match="Nearest: tower"):
        cluster.link("old", "towr")
    with pytest.raises(ClusterError, match="itself"):
        cluster.link("old", "old")


def test_the_shortest_file_has_gigabit_ethernet() -> None:
    cluster = parse_cluster('[[machine]]\nname = "a"\n[[machine]]\nname = "b"')
    assert cluster.machines[0] == Machine(name="a", cpus=1.0, gpus=0)
    assert cluster.link("a", "b") == Link(between=("a", "b"), bandwidth_bit_s=1e9, latency_s=1e-4)


def test_hypothetical_machines_stand_on_real_ones() -> None:
    cluster = parse_cluster(
        THREE + '[[machine]]\nname = "more"\nlike = "wish"\nspeed = 3\ncpus = 8\n'
    )
    assert [machine.name for machine in cluster.real_machines] == ["tower", "old"]
    assert cluster.machine("wish").hypothetical
    more = cluster.machine("more")
    assert (more.cpus, more.gpus) == (8.0, 1), "its own cpus; gpus through wish from tower"
    assert cluster.reference("more") == (cluster.machine("tower"), 1.5)
    assert cluster.reference("old") == (cluster.machine("old"), 1.0)


A = '[[machine]]\nname = "a"\n'
B = '[[machine]]\nname = "b"\n'
WRONG = {
    "": ["no machines"],
    '[[machine]]\nname = "a"\ncpus =\n': ["not valid TOML", "line 3"],
    '[[machine]]\nname = "a': ["not valid TOML", "line 2"],
    '[machine]\nname = "a"': ["[[machine]]", "double brackets"],
    'machine = ["a"]': ["[[machine]]"],
    '[[machines]]\nname = "a"': ["'machines'", "Nearest: machine"],
    "[[machine]]\ncpus = 1": ["[[machine]] 1", "'name'", "nothing", "name in quotes"],
    "[[machine]]\nname = 3": ["'name'", "3"],
    '[[machine]]\nname = ""': ["'name'", "''"],
    '[[machine]]\nname = " a"': ["'name'", "' a'"],
    A + "cpu = 2": ["[[machine]] 1 ('a')", "'cpu'", "Nearest: cpus"],
    A + "cpus = true": ["'cpus'", "True", "a number"],
    A + 'cpus = "2"': ["'cpus'", "'2'", "a number"],
    A + "cpus = 0": ["'cpus'", "0.0", "above 0"],
    A + "cpus = -1": ["'cpus'", "-1.0", "above 0"],
    A + "cpus = nan": ["'cpus'", "nan", "finite"],
    A + f"cpus = 1{400 * '0'}": ["'cpus'", "finite"],
    A + "gpus = true": ["'gpus'", "True", "whole"],
    A + "gpus = 1.0": ["'gpus'", "1.0", "whole"],
    A + "gpus = -1": ["'gpus'", "-1"],
    A + "address = 5": ["'address'", "5", "quotes"],
    A + "speed = 2": ["'like'", "nothing", "speed"],
    A + B + 'like = "a"\nspeed = 0': ["[[machine]] 2 ('b')", "'speed'", "0.0"],
    A + B + 'like = "c"': ["[[machine]] 2 ('b')", "'like'", "unknown machine 'c'"],
    A + 'like = "a"': ["'like'", "circle", "'a' -> 'a'"],
    A + 'like = "b"\n' + B + 'like = "a"': ["'like'", "'a' -> 'b' -> 'a'"],
    A + A: ["[[machine]] 2", "'name'", "[[machine]] 1"],
    A + "[network]\nspeed = 1": ["[network]", "'speed'", "Known: bandwidth, latency"],
    A + "[[network]]\nlatency = '1 s'": ["[network]", "one table"],
    A + "[network]\nbandwidth = 1000": ["[network]", "'bandwidth'", "1000", "1 Gbit/s"],
    A + "[network]\nbandwidth = '1000'": ["'bandwidth'", "'1000'", "unit"],
    A + "[network]\nbandwidth = '0 Gbit/s'": ["'bandwidth'", "'0 Gbit/s'", "above 0"],
    A + "[network]\nbandwidth = '-1 Gbit/s'": ["'bandwidth'", "'-1 Gbit/s'", "above 0"],
    A + "[network]\nlatency = 1": ["'latency'", "1", "0.1 ms"],
    A + "[network]\nlatency = '-1 ms'": ["'latency'", "'-1 ms'", "0 or more"],
    A + "[[link]]\nbetween = ['a', 'a']": ["[[link]] 1", "'between'", "different"],
    A + "[[link]]\nbetween = ['a']": ["[[link]] 1", "'between'", "['a']", "two names"],
    A + "[[link]]\nlatency = '1 s'": ["[[link]] 1", "'between'", "nothing"],
    A + "[[link]]\nbetween = ['a', 'z']": ["[[link]] 1", "unknown machine 'z'"],
    A + B + "[[link]]\nbetween=['a','b']\nbandwith='1 Gbit/s'": ["Nearest: bandwidth"],
    A + B + 2 * "[[link]]\nbetween=['b','a']\n": ["[[link]] 2", "[[link]] 1 joins already"],
}


@pytest.mark.parametrize(("text", "told"), WRONG.items(), ids=range(len(WRONG)))
def test_a_wrong_file_is_refused_by_name(text: str, told: list[str]) -> None:
    with pytest.raises(ClusterError) as caught:
        parse_cluster(text, source="home.toml")
    message = str(caught.value)
    assert message.startswith("home.toml: ")
    assert [part for part in told if part not in message] == [], message


def test_loading_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "home.toml"
    with pytest.raises(ClusterError, match=r"home\.toml: no such file"):
        load_cluster(path)
    with pytest.raises(ClusterError, match="cannot be read"):
        load_cluster(tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ClusterError, match=r"home\.toml: byte 0 is not UTF-8"):
        load_cluster(path)
    path.write_text("\ufeff" + THREE, encoding="utf-8")
    assert load_cluster(path) == load_cluster(str(path)) == parse_cluster(THREE)


@pytest.mark.parametrize(
    ("text", "bit_s"),
    [
        ("1 Gbit/s", 1e9),
        ("100 Mbit/s", 1e8),
        ("10mbit", 1e7),
        ("12.5 MB/s", 1e8),
        ("10 Mbps", 1e7),
        ("10 MBps", 8e7),
        ("1 KiB/s", 8192.0),
        ("1.5e3 kbits/s", 1.5e6),
        (" .5 Tbit/s ", 5e11),
        ("8 bytes/s", 64.0),
        ("7 b", 7.0),
    ],
)
def test_bandwidths(text: str, bit_s: float) -> None:
    assert parse_bandwidth(text) == bit_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0.1 ms", 1e-4), ("50us", 5e-5), ("1 s", 1.0), ("3 µs", 3e-6), ("7ns", 7e-9), ("0 s", 0.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "fast", "1", "1 Gbit/h", "1 ms", "1e999 bit/s", "1 ibit/s"])
def test_what_is_no_bandwidth(text: str) -> None:
    with pytest.raises(ClusterError, match="Gbit/s"):
        parse_bandwidth(text)


@pytest.mark.parametrize("text", ["", "1", "1 m", "1 MS", "-1 s", "1e999 s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ClusterError, match=r"0\.1 ms"):
        parse_duration(text)


positive = st.floats(min_value=1e-300, max_value=1e300, allow_subnormal=False)
seconds = st.floats(min_value=0, max_value=1e300)
names = st.text(min_size=1, max_size=8).filter(lambda t: t.isprintable() and t == t.strip())


@given(positive, seconds)
def test_figures_survive_being_written(bandwidth: float, latency: float) -> None:
    assert parse_bandwidth(format_bandwidth(bandwidth)) == bandwidth
    assert parse_duration(format_duration(latency)) == latency


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    machines: list[Machine] = []
    for name in draw(st.lists(names, min_size=1, max_size=5, unique=True)):
        earlier = [machine.name for machine in machines]
        like = draw(st.sampled_from(earlier) | st.none()) if earlier else None
        machines.append(
            Machine(
                name=name,
                cpus=draw(positive),
                gpus=draw(st.integers(min_value=0, max_value=2**63 - 1)),
                address=draw(names | st.none()),
                like=like,
                speed=draw(positive) if like else 1.0,
                flops=draw(positive | st.none()),
                within_bit_s=draw(positive | st.none()),
            )
        )
    order = draw(st.permutations(machines))
    pairs = [(a.name, b.name) for i, a in enumerate(order) for b in order[:i]]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return Cluster(
        machines=tuple(order),
        network=Network(bandwidth_bit_s=draw(positive), latency_s=draw(seconds)),
        links=tuple(
            Link(between=pair, bandwidth_bit_s=draw(positive), latency_s=draw(seconds))
            for pair in chosen
        ),
    )


@given(clusters())
def test_a_cluster_survives_being_written(cluster: Cluster) -> None:
    assert parse_cluster(to_toml(cluster)) == cluster


def test_figures_for_simulating_are_read() -> None:
    text = '[[machine]]\nname = "a"\nflops = "9.5 TFLOP/s"\nwithin = "80 GB/s"\n'
    (machine,) = parse_cluster(text).machines
    assert (machine.flops, machine.within_bit_s) == (9.5e12, 6.4e11)
    with pytest.raises(ClusterError, match=r"key 'flops'.*found '9.5 GB/s'.*TFLOP/s"):
        parse_cluster(text.replace("9.5 TFLOP/s", "9.5 GB/s"))


@pytest.mark.parametrize(
    ("text", "flops"), [("2GFLOPS", 2e9), ("1.5 tflop/s", 1.5e12), ("3 PFLOP/s", 3e15)]
)
def test_speeds_of_computing(text: str, flops: float) -> None:
    assert parse_flops(text) == flops
    assert parse_flops(format_flops(flops)) == flops


def test_what_is_written_reads_well() -> None:
    text = to_toml(parse_cluster(THREE))
    assert 'between = ["old", "tower"]\nbandwidth = "100 Mbit/s"\nlatency = "200 us"' in text


@pytest.mark.parametrize(
    "fields",
    [{"cpus": 0.0}, {"speed": 2.0}, {"gpus": -1}, {"address": ""}, {"like": "a\n"}]
    + [{"flops": 0.0}, {"flops": float("inf")}],
    ids=lambda fields: next(iter(fields)),
)
def test_a_machine_cannot_be_built_wrong_in_code_either(fields: dict[str, object]) -> None:
    with pytest.raises(ClusterError, match=f"key '{next(iter(fields))}'"):
        Machine(name="a", **fields)  # type: ignore[arg-type]
