"""Profiles: as files, as what stands for a run, and put together."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.cost.profile import DeviceProfile, LayerProfile, LinkProfile, Profile, load
from convoy.cost.profile_fit import checked, differences, merged, misfits
from convoy.errors import ProfileError

from .profiles import all_reduce, device, link, profile


def digits(low: float, high: float) -> st.SearchStrategy[float]:
    """Floats of five significant digits, which a file keeps."""
    return st.floats(low, high, allow_subnormal=False).map(lambda x: float(f"{x:.5g}"))


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=6)
SECONDS = digits(0, 1e4)


@st.composite
def devices(draw: st.DrawFn) -> DeviceProfile:
    samples = tuple(sorted(draw(st.sets(st.integers(1, 9999), min_size=1, max_size=4))))
    times = st.tuples(*[SECONDS] * len(samples))
    layer = st.builds(
        LayerProfile,
        name=NAMES,
        forward_s=times,
        backward_s=times,
        filters=st.dictionaries(st.sampled_from(["0.25", "0.5"]), digits(1e-3, 2)),
    )
    return device(
        draw(NAMES),
        hardware=draw(NAMES),
        cores=draw(digits(0.1, 128)),
        memory_bytes=draw(st.integers(0, 2**45)),
        samples=samples,
        load_s=draw(times),
        forward_s=draw(times),
        backward_s=draw(times),
        update_s=draw(SECONDS),
        average_s=draw(st.just(0.0) | SECONDS),
        replica_s=draw(st.just(()) | times),
        alone=draw(digits(0.01, 1)),
        variation=tuple(draw(st.lists(digits(0.1, 9), min_size=1, max_size=10))),
        layers=tuple(draw(st.lists(layer, max_size=3))),
        memory_formats=draw(st.dictionaries(NAMES, SECONDS, max_size=2)),
    )


@settings(max_examples=40, deadline=None)  # each writes a file
@given(st.lists(devices(), min_size=1, max_size=3), st.booleans(), digits(1, 1e12))
def test_a_file_holds_all_of_it(
    several: list[DeviceProfile], rings: bool, bandwidth: float
) -> None:
    before = profile(
        several,
        links=(link("a", "a", bandwidth), link("a", 'ä "b"', latency_s=0.0)),
        all_reduce=all_reduce((0.0, 0.25), (1e-5, 1e-5)) if rings else None,
        created="2026-11-21",
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "deeper", "profile.json")
        before.save(path)
        assert load(path) == before
        assert [p.name for p in path.parent.iterdir()] == ["profile.json"]


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-12, 1e6), st.floats(1, 1e13))
def test_figures_keep_five_digits(seconds: float, bandwidth: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "profile.json")
        profile([device(update_s=seconds)], links=(link("a", "b", bandwidth),)).save(path)
        read = load(path)
    assert read.devices[0].update_s == pytest.approx(seconds, rel=5e-5)
    assert read.links[0].bandwidth_bytes_s == pytest.approx(bandwidth, rel=5e-5)


def test_a_person_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    profile([device("tower", load_s=(0.1, 0.2, 1 / 3))]).save(path)
    lines = path.read_text().splitlines()
    assert '   "load_s": [0.1, 0.2, 0.33333],' in lines
    assert '   "samples": [1, 16, 64],' in lines
    assert '   "memory_bytes": 8589934592,' in lines


def test_a_person_can_edit_it(tmp_path: Path) -> None:
    """Whole numbers where there were fractions; what may be left out left out."""

    def change(content: dict[str, Any]) -> None:
        for key in ("links", "all_reduce", "created"):
            del content[key]
        content["devices"][0] |= {"forward_s": [1, 2, 30], "cores": 2}
        for key in ("replica_s", "alone", "variation", "layers", "memory_formats"):
            del content["devices"][0][key]

    wanted = device(forward_s=(1.0, 2.0, 30.0), cores=2.0)
    assert load(edited(tmp_path, change)) == profile([wanted])


def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A profile's file with a change made to it."""
    path = folder / "p.json"
    layer = LayerProfile(name="conv1", forward_s=(0.0,) * 3, backward_s=(0.0,) * 3)
    profile([device(layers=(layer,))], links=(link("a", "b"),), all_reduce=all_reduce()).save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def at(*keys: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (at("version", value=1), "a profile of version 1, and this Convoy reads 2. Measure again"),
        (lambda content: content.pop("version"), "not a profile: it has no version"),
        (lambda content: content.pop("network"), "p.json: network: Field required"),
        (at("network", "input", value=[1, 8, "x"]), "p.json: network.input.2: "),
        (at("precision", value=3), "p.json: precision: "),
        (at("devices", value="none"), "p.json: devices: "),
        (at("devices", 0, "forward_s", 1, value="fast"), "p.json: devices.0.forward_s.1: "),
        (at("devices", 0, "forward_s", value=0.5), "p.json: devices.0.forward_s: "),
        (at("devices", 0, "threads", value=1.5), "p.json: devices.0.threads: "),
        (at("devices", 0, "load_s", value=[1.0, 2.0]), r"a \(cpu\), load_s: 2 times for 3 numb"),
        (at("devices", 0, "load_s", 0, value=-1), r"a \(cpu\), load_s: .*-1.*: expected finite"),
        (at("devices", 0, "replica_s", value=[0.1]), "replica_s: 1 times for 3 numbers"),
        (at("devices", 0, "update_s", value=math.nan), "p.json: .*update_s: nan; expected 0 or"),
        (at("devices", 0, "update_s", value=-0.5), "p.json: .*update_s: -0.5; expected 0 or more"),
        (at("devices", 0, "alone", value=0), "p.json: .*alone: 0; expected more than 0"),
        (at("devices", 0, "variation", value=[]), "variation: expected at least one"),
        (at("devices", 0, "samples", value=[4, 2, 64]), "expected rising numbers"),
        (at("devices", 0, "layers", 0, "backward_s", value=[1]), "conv1.backward_s: 1 times for 3"),
        (
            at("devices", 0, "layers", 0, "forward_s", 2, value=math.nan),
            "conv1.forward_s: .*finite",
        ),
        (
            at("links", 0, "bandwidth_bytes_s", value=0),
            "link a - b, bandwidth_bytes_s: 0; expected",
        ),
        (at("links", 0, "latency_s", value=-1e-3), "link a - b, latency_s: -0.001; expected 0 or"),
        (at("links", 0, "between", value=["a"]), "p.json: links.0.between"),
        (at("all_reduce", "seconds", value=[1.0]), "all_reduce, seconds: 1 times for 2"),
        (at("all_reduce", "cpu_s", 1, value=[1.0]), "all_reduce, cpu_s.1: 1 times for 2"),
    ],
)
def test_an_edit_that_cannot_be_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    path = edited(tmp_path, change)
    with pytest.raises(ProfileError, match=says) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1]", "is not a profile"),
        (b"3", "is not a profile"),
    ],
)
def test_what_is_no_profile(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(ProfileError, match=f"p.json {says}"):
        load(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"p.json: No such file.* convoy measure --out .*p.json"):
        load(tmp_path / "p.json")


def test_where_nothing_can_be_written_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for place, why in (
        ("file/p.json", "Not a directory|File exists"),
        ("file/deeper/p.json", "Not a directory"),
        ("folder", "directory"),
    ):
        with pytest.raises(ProfileError, match=f"cannot write the profile .*{place}: .*({why})"):
            profile().save(tmp_path / place)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    for batch_size in (1000, 8):
        profile(batch_size=batch_size).save(path)
        assert load(path).batch_size == batch_size


def test_a_layer_that_was_not_measured() -> None:
    layer = LayerProfile(name="conv1", forward_s=(0.0,) * 3, backward_s=(0.0,) * 3)
    known = device(layers=(layer,))
    assert known.layer("conv1") is layer
    with pytest.raises(ProfileError, match=r"no times of layer 'fc' on a \(cpu\); it has conv1"):
        known.layer("fc")
    with pytest.raises(ProfileError, match="it has none"):
        device().layer("fc")


def test_a_profile_stands_for_what_it_was_taken_of() -> None:
    taken = profile([device("a"), device("b")])
    assert misfits(taken, taken) == []
    assert misfits(taken, profile([device("b")], batch_size=32)) == []
    assert misfits(taken, replace(taken, devices=(), memory_format="auto", created="now")) == []
    assert checked(taken, taken, "p.json") is taken


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (
            profile(network=replace(profile().network, name="vgg16")),
            "network: taken with net, wanted is vgg16",
        ),
        (
            profile(network=replace(profile().network, input=(3, 8, 8))),
            "images: taken with [1, 8, 8], wanted is [3, 8, 8]",
        ),
        (profile(network=replace(profile().network, classes=2)), "classes: taken with 10, wanted"),
        (
            profile(network=replace(profile().network, fingerprint="beef")),
            "network net: its layers have changed",
        ),
        (profile(precision="bf16"), "precision: taken with fp32, wanted is bf16"),
        (profile(optimizer="adam"), "optimizer: taken with sgd, wanted is adam"),
        (
            profile(versions={"convoy": "0.3", "torch": "2.14"}),
            "version of torch: taken with 2.13, wanted is 2.14",
        ),
        (profile(batch_size=257), "batch size: taken up to 64 samples, wanted are 257"),
        (profile([device("c")]), "c (cpu) was not measured"),
        (profile([device(device="cuda:0")]), "a (cuda:0) was not measured"),
        (profile([device(), device()]), "a (cpu) number 2 was not measured"),
        (
            profile([device(hardware="another")]),
            "a (cpu), hardware: taken on a processor, now it is another",
        ),
        (profile([device(cores=0.5)]), "a (cpu), cores: taken on 1.0, now it is 0.5"),
        (profile([device(threads=2)]), "a (cpu), threads: taken on 1, now it is 2"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_why_a_profile_does_not_stand_for_a_run(wanted: Profile, reason: str) -> None:
    (found,) = misfits(profile(), wanted)
    assert found.startswith(reason)
    with pytest.raises(ProfileError, match="the profile p.json does not fit: .*convoy measure"):
        checked(profile(), wanted, "p.json")


def test_ranks_of_one_machine_are_compared_in_order() -> None:
    taken = profile([device(threads=1), device("b"), device(threads=2)])
    assert misfits(taken, profile([device(threads=1), device(threads=2)])) == []
    assert misfits(taken, profile([device(threads=2), device(threads=2)])) == [
        "a (cpu), threads: taken on 1, now it is 2"
    ]
    assert misfits(taken, profile([device(threads=1), device(threads=1)])) == [
        "a (cpu) number 2, threads: taken on 2, now it is 1"
    ]


def test_a_machine_is_added() -> None:
    a, b, c = device("a"), device("b"), device("c", cores=4.0)
    pair = all_reduce((0.1, 0.2), (0.3, 0.4))
    old = profile([a, b], links=(link("a", "b"),), all_reduce=pair, created="old")
    both = merged(old, profile([c], created="new"))
    assert both.devices == (a, b, c)
    assert (both.links, both.all_reduce, both.created) == (old.links, pair, "new")


def test_what_is_measured_again_takes_the_olds_place() -> None:
    a, b, c = (device(name) for name in "abc")
    new_a, new_b = device("a", 0.5), device("b", 0.25)
    old = profile([a, b, c])
    assert merged(old, profile([new_b])).devices == (a, new_b, c)
    assert merged(old, profile([new_b, new_a])).devices == (new_a, new_b, c)
    assert merged(profile([a]), profile([new_b, new_a])).devices == (new_b, new_a)


def test_of_ranks_on_one_machine_each_takes_its_own_place() -> None:
    first, second, other = device(threads=1), device(threads=2), device("b")
    old = profile([first, other, second])
    new = device(threads=3)
    assert merged(old, profile([new])).devices == (new, other, second)
    assert merged(old, profile([new, new])).devices == (new, other, new)
    assert merged(profile([first]), profile([new, second])).devices == (new, second)


def test_the_devices_of_the_all_reduces_are_the_first() -> None:
    """Rank i of those stands at position i, so that its CPU time is counted for it."""
    a, b, c = (device(name) for name in "abc")
    old_pair, new_pair = all_reduce((1.0, 1.0), (2.0, 2.0)), all_reduce((3.0, 3.0), (4.0, 4.0))
    old = profile([a, b], links=(link("a", "b"),), all_reduce=old_pair)
    new = profile([b, c], links=(link("b", "c"),), all_reduce=new_pair)
    both = merged(old, new)
    assert (both.devices, both.all_reduce) == ((b, c, a), new_pair)
    assert both.links == (link("a", "b"), link("b", "c"))
    again = merged(old, profile([device("a", 0.5)]))
    assert (again.devices, again.all_reduce) == ((device("a", 0.5), b), old_pair)


def test_links_are_replaced_whichever_way_round_they_stand() -> None:
    old = profile(links=(link("a", "b", 1.0), link("a", "c", 2.0), link("a", "a", 3.0)))
    new = profile(links=(link("b", "a", 4.0), link("a", "a", 5.0)))
    assert [(m.between, m.bandwidth_bytes_s) for m in merged(old, new).links] == [
        (("a", "c"), 2.0),
        (("b", "a"), 4.0),
        (("a", "a"), 5.0),
    ]


def test_what_is_kept_was_measured_up_to_its_own_batch_size() -> None:
    old, new = profile([device("a")], batch_size=32), profile([device("b")], batch_size=512)
    assert merged(old, new).batch_size == merged(new, old).batch_size == 32
    assert merged(old, profile([device("a")], batch_size=512)).batch_size == 512


def test_profiles_of_different_things_are_not_merged() -> None:
    new = profile(precision="bf16", optimizer="adam")
    with pytest.raises(ProfileError, match="cannot be merged: precision: .*; optimizer: "):
        merged(profile(), new)
    assert differences(profile(), new) != []


def test_figures_that_cannot_be_are_no_profile_either() -> None:
    with pytest.raises(ProfileError, match="bandwidth_bytes_s: inf"):
        LinkProfile(between=("a", "b"), bandwidth_bytes_s=math.inf, latency_s=0.0)
    with pytest.raises(ProfileError, match="cores: -1"):
        device(cores=-1.0)


def test_measuring_again_says_with_what() -> None:
    """`downpour` has an optimizer of its own, and a profile is taken with one."""
    wanted = replace(profile(), optimizer="adagrad")
    with pytest.raises(ProfileError, match=r"Measure again: convoy measure --optimizer adagrad$"):
        checked(profile(), wanted, "p.json")
