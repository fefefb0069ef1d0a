"""What a survey asks for, and what it makes of the answers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.cost.curve import Curve
from convoy.runtime.formation import Job
from convoy.runtime.settings import TrainSettings
from convoy.runtime.survey import _spread, alone_size, identity, ladder, layer_sizes
from convoy.runtime.surveyor import Steps
from convoy.strategies import make_strategy


@given(st.integers(1, 100_000))
def test_batch_sizes_reach_from_one_to_the_whole(batch_size: int) -> None:
    sizes = ladder(batch_size)
    assert (sizes[0], sizes[-1]) == (1, batch_size)
    assert all(a < b <= 4 * a for a, b in itertools.pairwise(sizes))
    assert len(sizes) <= batch_size.bit_length() / 2 + 4


@pytest.mark.parametrize(
    ("batch_size", "sizes"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 3)),
        (64, (1, 4, 16, 32, 48, 64)),
        (100, (1, 4, 16, 25, 50, 75, 100)),
    ],
)
def test_batch_sizes_by_hand(batch_size: int, sizes: tuple[int, ...]) -> None:
    assert ladder(batch_size) == sizes


def test_layers_times_sum_to_the_networks_at_every_batch_size() -> None:
    """At sizes at which they were not timed their parts lie between those at which they were."""
    steps = Steps(
        samples=(1, 4, 8, 16, 32, 64),
        seconds={
            "load": (0.0,) * 6,
            "forward": (1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
            "backward": (2.0, 4.0, 8.0, 16.0, 32.0, 64.0),
            "update": (0.0,) * 6,
        },
        replica_s=(0.0,) * 6,
        variation=(1.0,),
    )
    assert layer_sizes(steps.samples) == (1, 16, 32, 64)
    layers = {
        "conv": ((30.0, 30.0, 20.0, 20.0), (0.0, 5.0, 5.0, 5.0)),
        "fc": ((10.0, 30.0, 20.0, 60.0), (0.0, 15.0, 5.0, 0.0)),
    }
    conv, fc = (_spread(steps, *layers[name], layers) for name in layers)
    assert conv["forward_s"] == pytest.approx((0.75, 4 / 3, 7 / 3, 4.0, 8.0, 8.0))
    assert fc["forward_s"] == pytest.approx((0.25, 2 / 3, 5 / 3, 4.0, 8.0, 24.0))
    assert (conv["backward_s"][3], fc["backward_s"][3]) == (4.0, 12.0)
    for parts in (conv, fc):
        Curve(steps.samples, parts["forward_s"])


@pytest.mark.parametrize(
    ("share", "expected"),
    [(64, 16), (16, 16), (15, 4), (1, 1), (0.5, 1)],  # 64 would take 3.2 s
)
def test_a_device_is_timed_alone_with_about_its_share(share: float, expected: int) -> None:
    sizes = (1, 4, 16, 64)
    steps = Steps(
        samples=sizes,
        seconds={"load": (0.0,) * 4, "forward": tuple(0.05 * size for size in sizes)},
        replica_s=(0.0,) * 4,
        variation=(1.0,),
    )
    assert alone_size(steps, share) == expected


def test_what_a_profile_has_to_be_of() -> None:
    job = Job(
        settings=TrainSettings(batch_size=8, precision="fp64", optimizer="adam"),
        strategy=make_strategy("data", {}),
        network="lenet5",
        dataset="synthetic:1x32x32:3:18",
    )
    wanted = identity(job)
    assert (wanted.network.input, wanted.network.classes) == ((1, 32, 32), 3)
    assert (wanted.precision, wanted.optimizer, wanted.batch_size) == ("fp64", "adam", 8)
    assert set(wanted.versions) == {"convoy", "torch"}
    assert wanted.devices == ()
    assert identity(job) == wanted
