"""`convoy plan` with figures in closed form: every layer of lenet takes a device 3 ms a sample."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from convoy import networks
from convoy.cost.layers import fingerprint, layers_of
from convoy.cost.profile import (
    AllReduceProfile,
    DeviceProfile,
    LayerProfile,
    LinkProfile,
    Profile,
    ProfiledNetwork,
)
from convoy.version import __version__

Convoy = Callable[..., Any]
KEYS = {
    *("strategy", "machines", "step_s", "step_p90_s", "images_per_s", "speedup"),
    *("sent_bytes_per_step", "peak_bytes", "feasible", "reason"),
}
PARAMETERS = 431_080
ASKED = ("plan", "--network", "lenet", "--profile", "p.json", "--batch-size", "60")


def device(name: str, speed: float, **more: Any) -> DeviceProfile:
    """One that takes so many times less than 1 ms forward and 2 ms backward for each layer."""
    layers = tuple(
        LayerProfile(
            name=layer.name,
            forward_s=(0.001 / speed, 0.060 / speed),
            backward_s=(0.002 / speed, 0.120 / speed),
        )
        for layer in traced()
    )
    values: dict[str, Any] = {
        "machine": name,
        "device": "cpu",
        "hardware": "x",
        "cores": 1,
        "threads": 1,
        "memory_bytes": 2**36,
        "samples": (1, 60),
        "load_s": (0.0, 0.0),
        "forward_s": (0.001 * len(layers) / speed, 0.060 * len(layers) / speed),
        "backward_s": (0.002 * len(layers) / speed, 0.120 * len(layers) / speed),
        "update_s": 0.0,
        "layers": layers,
    }
    return DeviceProfile(**(values | more))


def traced() -> Any:
    with torch.device("meta"):
        model = networks.build("lenet", input_shape=(1, 28, 28), num_classes=10)
    return layers_of(model, (1, 28, 28))


def profile(*devices: DeviceProfile) -> Profile:
    return Profile(
        network=ProfiledNetwork(
            name="lenet", input=(1, 28, 28), classes=10, fingerprint=fingerprint(traced())
        ),
        precision="fp32",
        optimizer="sgd",
        memory_format="contiguous",
        batch_size=60,
        versions={"convoy": __version__, "torch": torch.__version__.partition("+")[0]},
        devices=devices or (device("tower", 1.0), device("old", 0.5)),
        links=(LinkProfile(between=("tower", "old"), bandwidth_bytes_s=1e9, latency_s=0.0),),
        all_reduce=AllReduceProfile(
            payload_bytes=(8, 10**6),
            seconds=(0.001, 0.003),  # of the latter 1 ms is the bytes' way
            cpu_s=((0.0, 0.0), (0.0, 0.0)),
            s_per_byte=1e-9,
        ),
    )


def test_the_contract_and_the_closed_form(convoy: Convoy) -> None:
    """60 samples as 40 and 20 take two thirds of the time; the exchange is small beside it."""
    profile().save(Path("p.json"))
    ran = convoy(*ASKED, "--json")
    found = json.loads(ran.out)
    assert (ran.status, ran.err) == (0, "")
    assert all(plan.keys() >= KEYS for plan in found["plans"])
    assert {plan["strategy"] for plan in found["plans"]} == {
        *("single", "data", "averaging", "downpour", "filter", "hybrid", "pipeline")
    }
    steps = [plan["step_s"] for plan in found["plans"]]
    assert steps == sorted(steps)

    chosen = found["plans"][found["chosen"]]
    alone = 60 * 0.003 * len(traced())
    assert chosen["strategy"] == "data"
    assert [(m["name"], m["samples"]) for m in chosen["machines"]] == [("tower", 40), ("old", 20)]
    assert [m["share"] for m in chosen["machines"]] == pytest.approx([2 / 3, 1 / 3])
    assert chosen["step_s"] == pytest.approx(alone * 2 / 3, rel=0.02)
    assert chosen["images_per_s"] == pytest.approx(60 / chosen["step_s"])
    singles = {p["machines"][0]["name"]: p for p in found["plans"] if p["strategy"] == "single"}
    assert singles["tower"]["step_s"] == pytest.approx(alone)
    assert singles["old"]["step_s"] == pytest.approx(2 * alone)
    assert chosen["speedup"] == pytest.approx(alone / chosen["step_s"])
    # a ring of two: each sends the parameters once
    assert chosen["sent_bytes_per_step"] == 2 * 4 * PARAMETERS
    assert chosen["link_bytes"] == {"tower -> old": 4 * PARAMETERS, "old -> tower": 4 * PARAMETERS}
    assert chosen["amdahl_step_s"] == pytest.approx(alone * 2 / 3)
    assert found["advice"].startswith("Use data on tower (67%) and old (33%)")


def test_at_its_break_even_two_machines_are_as_fast_as_one(convoy: Convoy) -> None:
    measured = profile()
    measured.save(Path("p.json"))
    few = (*ASKED, "--strategies", "single,data,pipeline", "--json")
    bandwidth = json.loads(convoy(*few).out)["break_even_bandwidth"]
    assert bandwidth > 0
    asked = {
        factor: json.loads(convoy(*few, "--bandwidth", f"{bandwidth * factor} bit/s").out)
        for factor in (0.9, 1.1)
    }
    (link,) = measured.links
    link = replace(link, bandwidth_bytes_s=bandwidth / 8 * 1.1)
    replace(measured, links=(link,)).save(Path("p.json"))
    edited = json.loads(convoy(*few).out)
    for found, devices in ((asked[0.9], 1), (asked[1.1], 2), (edited, 2)):
        assert len(found["plans"][found["chosen"]]["machines"]) == devices
    assert [p["step_s"] for p in asked[1.1]["plans"]] == pytest.approx(
        [p["step_s"] for p in edited["plans"]], rel=1e-4
    )


def test_how_far_behind_pushes_are_expected_to_be(convoy: Convoy) -> None:
    profile().save(Path("p.json"))
    found = json.loads(convoy(*ASKED, "--strategies", "downpour", "--json").out)
    (plan,) = found["plans"]
    assert plan["settled"]["expected_staleness"] in (1, 3)  # without a push in flight, or with one
    staleness = plan["settled"]["expected_staleness"]
    assert f"staleness {staleness:g}" in convoy(*ASKED, "--strategies", "downpour").out


def test_a_faster_link_is_worth_what_its_bytes_took(convoy: Convoy) -> None:
    """1.7 MB over 8 Gbit/s, and over 80: the overhead that was measured stays."""
    profile(device("tower", 1e6), device("old", 1e6)).save(Path("p.json"))  # nothing to hide behind
    steps = []
    for options in ((), ("--bandwidth", "80 Gbit/s")):
        found = json.loads(convoy(*ASKED, *options, "--strategies", "data", "--json").out)
        steps.append(found["plans"][0]["step_s"])
    assert steps[0] - steps[1] == pytest.approx(4 * PARAMETERS * (1e-9 - 1e-10), rel=0.2)


def test_a_link_that_is_not_as_described(convoy: Convoy) -> None:
    profile().save(Path("p.json"))
    Path("cluster.toml").write_text(
        '[[machine]]\nname = "tower"\ncpus = 1.0\n[[machine]]\nname = "old"\ncpus = 1.0\n'
        '[network]\nbandwidth = "100 Mbit/s"\n'
    )
    ran = convoy(*ASKED, "--cluster", "cluster.toml")
    said = " ".join(ran.err.split()) + " ".join(ran.out.split())
    assert "tower - old: measured 8 Gbit/s, the cluster file says 100 Mbit/s" in said


def test_a_table_a_verdict_and_a_picture(convoy: Convoy) -> None:
    profile().save(Path("p.json"))
    ran = convoy(*ASKED, "--picture", "step.png", "--strategies", "single,data")
    assert (ran.status, ran.err) == (0, "")
    assert "tower 40, old 20" in ran.out
    assert "averaging" not in ran.out
    assert "Use data on tower" in ran.out
    assert Path("step.png").read_bytes().startswith(b"\x89PNG")


def test_a_machine_that_is_not_there(convoy: Convoy) -> None:
    profile(device("tower", 1.0)).save(Path("p.json"))
    Path("cluster.toml").write_text(
        '[[machine]]\nname = "tower"\ncpus = 1.0\n'
        '[[machine]]\nname = "wish"\nlike = "tower"\nspeed = 2.0\n'
        '[network]\nbandwidth = "10 Gbit/s"\n'
    )
    found = json.loads(convoy(*ASKED, "--cluster", "cluster.toml", "--json").out)
    chosen = found["plans"][found["chosen"]]
    assert [(m["name"], m["samples"]) for m in chosen["machines"]] == [("tower", 20), ("wish", 40)]


def test_a_network_that_fits_nowhere(convoy: Convoy) -> None:
    """Plans are shown with the reason, and none is chosen for use."""
    small = [device(n, 1.0, memory_bytes=2**20) for n in ("tower", "old")]
    profile(*small).save(Path("p.json"))
    ran = convoy(*ASKED, "--json")
    found = json.loads(ran.out)
    assert ran.status == 0
    assert not any(plan["feasible"] for plan in found["plans"])
    assert all("of memory" in plan["reason"] for plan in found["plans"])
    assert found["advice"].startswith("No plan can be carried out.")
    assert "smaller --batch-size" in convoy(*ASKED).out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--network", "lenet5"), "network: taken with lenet, wanted is lenet5"),
        (("--batch-size", "1000"), "taken up to 60 samples, wanted are 1000"),
        (("--optimizer", "adam"), "optimizer: taken with sgd, wanted is adam"),
        (("--workers", "3"), "--workers 3 does not go with this profile"),
        (("--threads-per-worker", "2"), "--threads-per-worker 2 does not go with this profile"),
        (("--cluster", "other.toml"), "tower was measured with 1 cores"),
        (("--cluster", "third.toml"), "third has no figures"),
        (("--profile", "none.json"), "none.json"),
        (("--strategies", "dta"), "data"),
    ],
)
def test_what_does_not_fit_is_refused(convoy: Convoy, options: tuple[str, ...], said: str) -> None:
    profile().save(Path("p.json"))
    Path("other.toml").write_text('[[machine]]\nname = "tower"\ncpus = 2.0\n')
    Path("third.toml").write_text('[[machine]]\nname = "third"\ncpus = 1.0\n')
    ran = convoy(*ASKED, *options)
    assert ran.status == 2
    assert said in " ".join(ran.err.split())
    assert ran.out == ""


def test_a_profile_with_a_layer_missing(convoy: Convoy) -> None:
    whole = profile()
    first = whole.devices[0]
    cut = replace(first, layers=first.layers[1:])
    replace(whole, devices=(cut, *whole.devices[1:])).save(Path("p.json"))
    ran = convoy(*ASKED)
    assert ran.status == 2
    assert f"no times of layer '{first.layers[0].name}' on tower" in " ".join(ran.err.split())
