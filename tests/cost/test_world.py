"""What a world says of its devices and links, against what was measured of them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.cluster import Cluster, Link, Machine, Network
from convoy.cost.fabric import all_reduce_flow
from convoy.cost.profile import LayerProfile, Profile
from convoy.cost.schedule import Collective, Compute
from convoy.cost.simulate import simulate
from convoy.cost.world import TRANSFER_CPU_S_PER_BYTE, Luck, World, world_of
from convoy.errors import ProfileError

from .profiles import all_reduce, device, link, profile


def compute(phase: str, samples: int = 16, rank: int = 0, **more: Any) -> Compute:
    return Compute(rank=rank, phase=phase, samples=samples, **more)  # type: ignore[arg-type]


def reduce_alone(world: World, size: int, picks: tuple[int, ...] | None = None) -> float:
    """Seconds of one all-reduce, with nothing else to do."""
    picks = tuple(range(len(world.devices))) if picks is None else picks
    schedule = (Collective(kind="all-reduce", ranks=tuple(range(len(picks))), payload_bytes=size),)
    return simulate(schedule, world.seconds(picks), world.fabric(picks)).step_s


def test_a_device_takes_what_was_measured() -> None:
    layer = LayerProfile(name="fc", forward_s=(0.1, 0.2, 0.3), backward_s=(0.4, 0.5, 0.6))
    one = device(
        load_s=(0.01, 0.02, 0.03),
        update_s=0.5,
        replica_s=(0.0, 0.001, 0.002),
        average_s=0.25,
        layers=(layer,),
    )
    seconds = world_of(profile([one])).seconds((0,))
    assert seconds(compute("load")) == 0.02
    assert seconds(compute("load", 40)) == 0.025
    assert seconds(compute("forward")) == pytest.approx(0.3 * 0.016)
    assert seconds(compute("backward")) == pytest.approx(0.6 * 0.016)
    assert seconds(compute("update", 0)) == 0.5
    assert seconds(compute("replica")) == 0.001
    assert seconds(compute("average", 0)) == 0.25
    assert seconds(compute("forward", layer="fc")) == 0.2
    assert seconds(compute("backward", 64, layer="fc")) == 0.6
    with pytest.raises(ProfileError, match="'conv'"):
        seconds(compute("forward", layer="conv"))


def test_a_step_is_the_sum_of_its_phases() -> None:
    one = device(update_s=0.5, replica_s=(0.1, 0.2, 0.3))
    world = world_of(profile([one]))
    phases = ("load", "forward", "backward", "update")
    for samples in (1, 16, 40, 64):
        whole = sum(world.seconds((0,))(compute(phase, samples)) for phase in phases)
        assert world.step_curve(0, 1)(samples) == pytest.approx(whole)
    with_gradients = world.step_curve(0, 2, 1000)
    plain = world.step_curve(0, 2)
    assert with_gradients(16) - plain(16) > 0.2  # the replica, and what bytes cost the CPU


def test_without_replicas_figures_there_is_no_extra() -> None:
    assert world_of(profile()).seconds((0,))(compute("replica")) == 0


HYPOTHETICAL = Cluster(
    machines=(
        Machine(name="a"),
        Machine(name="wish", like="a", speed=2.0),
        Machine(name="dream", like="wish", speed=0.25),
    ),
    network=Network(bandwidth_bit_s=8e6, latency_s=0.02),
    links=(Link(between=("a", "dream"), bandwidth_bit_s=80e6, latency_s=0.003),),
)


def test_a_machine_like_another_is_as_many_times_as_fast() -> None:
    layer = LayerProfile(name="fc", forward_s=(0.1, 0.2, 0.3), backward_s=(0.4, 0.5, 0.6))
    one = device(update_s=0.5, replica_s=(0.1, 0.2, 0.3), average_s=0.7, layers=(layer,))
    world = world_of(profile([one]), HYPOTHETICAL)
    assert [(d.machine, d.speed, d.host) for d in world.devices] == [
        ("a", 1.0, 0),
        ("wish", 2.0, 1),
        ("dream", 0.5, 2),
    ]
    seconds = world.seconds((0, 1, 2))
    for work in ("load", "forward", "backward", "update", "replica", "average"):
        own, fast, slow = (seconds(compute(work, rank=rank)) for rank in range(3))
        assert (fast, slow) == pytest.approx((own / 2, own * 2))
    assert seconds(compute("backward", layer="fc", rank=2)) == 1.0
    curves = [world.step_curve(pick, 3, 10**6) for pick in range(3)]
    for samples in (1, 16, 200):
        assert curves[1](samples) == pytest.approx(curves[0](samples) / 2)
        assert curves[2](samples) == pytest.approx(curves[0](samples) * 2)


def test_links_are_as_described_where_none_was_measured() -> None:
    world = world_of(profile(links=(link("a", "a", 5e9, 1e-6),)), HYPOTHETICAL)
    assert (world.bandwidths[0, 1], world.latencies[0, 1]) == (1e6, 0.02)
    assert (world.bandwidths[2, 0], world.latencies[0, 2]) == (1e7, 0.003)
    assert [world.bandwidths[i, i] for i in range(3)] == [5e9] * 3  # within: as in the like


def test_links_are_as_measured_where_they_were() -> None:
    cluster = Cluster(
        machines=(Machine(name="a"), Machine(name="b"), Machine(name="c")),
        network=Network(bandwidth_bit_s=8e6, latency_s=0.02),
    )
    taken = profile(
        [device(name) for name in "abc"], links=(link("c", "a", 3e7, 1e-3), link("b", "a", 2e7))
    )
    world = world_of(taken, cluster)
    assert world.bandwidths[0, 2] == world.bandwidths[2, 0] == 3e7
    assert world.latencies[0, 2] == 1e-3
    assert world.bandwidths[1, 0] == 2e7
    assert (world.bandwidths[1, 2], world.latencies[2, 1]) == (1e6, 0.02)
    with pytest.raises(ProfileError, match="no link between b and c.* cluster file"):
        world_of(taken)


def test_a_machine_without_figures() -> None:
    cluster = Cluster(machines=(Machine(name="a"), Machine(name="new")))
    with pytest.raises(
        ProfileError, match=r"new has no figures: .* none of new, only of a\..*meas"
    ):
        world_of(profile(), cluster)
    cluster = Cluster(machines=(Machine(name="new"), Machine(name="wish", like="new")))
    with pytest.raises(ProfileError, match="new has no figures"):
        world_of(profile(), cluster)


def test_ranks_of_one_machine_share_its_host() -> None:
    taken = profile(
        [device("a"), device("b"), device("a", 0.5)], links=(link("a", "b", 1e6, 0.01),)
    )
    world = world_of(taken)
    assert [(d.machine, d.host, d.measured_as) for d in world.devices] == [
        ("a", 0, 0),
        ("a", 0, 2),
        ("b", 1, 1),
    ]
    assert world.fabric((0, 1)).hosts == (0, 0)
    assert reduce_alone(world, 10**6, (0, 1)) < 0.01 < reduce_alone(world, 10**6, (0, 2))


def test_a_slow_link_between_two_of_three() -> None:
    links = (link("a", "b", 1e8), link("a", "c", 2e6), link("b", "c", 1e8))
    world = world_of(profile([device(n, cores=2.0) for n in "abc"], links=links))
    size = 3 * 10**6
    assert reduce_alone(world, size) == pytest.approx(2 / 3 * 2 * size / 2e6, rel=1e-3)
    assert reduce_alone(world, size, (0, 1)) == pytest.approx(size / 1e8, rel=0.02)
    uniform = world.at(5e6).fabric((0, 1, 2))
    load, _ = all_reduce_flow(uniform, (0, 1, 2), size)
    assert {uniform.capacity(used) for used in load} == {5e6}


@st.composite
def measured(draw: st.DrawFn) -> Profile:
    """Devices on one to four machines whose all-reduces took at least their bytes' way."""
    machines = draw(st.lists(st.sampled_from("abcd"), min_size=2, max_size=4))
    count, names = len(machines), sorted(set(machines))
    pairs = [(a, b) for a in names for b in names if a < b]
    pairs += [(a, a) for a in names if machines.count(a) > 1]
    links = [link(a, b, draw(st.floats(1e5, 1e10)), draw(st.floats(0, 0.05))) for a, b in pairs]
    sizes = sorted(draw(st.sets(st.integers(1, 10**8), min_size=1, max_size=5)))
    slowest, furthest = min(m.bandwidth_bytes_s for m in links), max(m.latency_s for m in links)
    floor = [2 * (count - 1) * (furthest + count * s / slowest) for s in sizes]
    excess = draw(st.lists(st.floats(0, 0.1), min_size=len(sizes), max_size=len(sizes)))
    seconds = sorted(a + b for a, b in zip(floor, excess, strict=True))
    rows = [tuple(draw(st.floats(0, 0.9)) * s for s in seconds) for _ in machines]
    return profile(
        [device(name, cores=float(machines.count(name))) for name in machines],  # one each
        links=tuple(links),
        all_reduce=all_reduce(
            *(tuple(sorted(row)) for row in rows),
            payload_bytes=tuple(sizes),
            seconds=tuple(seconds),
        ),
    )


@settings(deadline=None, max_examples=60)
@given(measured())
def test_the_measured_all_reduces_are_reproduced(taken: Profile) -> None:
    """Those that cost a CPU less than they took."""
    assert taken.all_reduce is not None
    world = world_of(taken)
    # by machine, which may put them in another order
    order = sorted(range(len(world.devices)), key=lambda pick: world.devices[pick].measured_as)
    rows = zip(taken.all_reduce.payload_bytes, taken.all_reduce.seconds, strict=True)
    for size, seconds in rows:
        assert reduce_alone(world, size, tuple(order)) == pytest.approx(seconds, rel=0.01)


def test_what_an_all_reduce_takes_besides_its_way_may_fall() -> None:
    """8 ms of 10 are besides the way of 0.2 MB, and none of those that 2 MB take."""
    taken = profile(
        [device("a"), device("b")],
        links=(link("a", "b", 1e8, 0.0),),
        all_reduce=all_reduce(payload_bytes=(200_000, 2_000_000), seconds=(0.010, 0.020)),
    )
    world = world_of(taken)
    assert reduce_alone(world, 200_000) == pytest.approx(0.010)
    assert reduce_alone(world, 2_000_000) == pytest.approx(0.020)
    assert reduce_alone(world, 1_100_000) == pytest.approx(0.015)


def test_an_all_reduce_over_another_link_takes_that_links_way() -> None:
    """Measured: 1 ms besides the 10 that 1 MB takes between a and b; a and wish have 1 MB/s."""
    taken = profile(
        [device("a"), device("b")],
        links=(link("a", "b", 1e8, 0.0),),
        all_reduce=all_reduce(payload_bytes=(10**6,), seconds=(0.011,), cpu_s=((0.0,),) * 2),
    )
    found = reduce_alone(world_of(taken, HYPOTHETICAL), 10**6, (0, 1))
    assert found == pytest.approx(0.001 + 2 * 0.02 + 1.0)


def test_a_wider_ring_has_more_rounds() -> None:
    """What rounds take besides grows with 2 (n - 1)."""
    names = "abcd"
    links = tuple(link(a, b, 1e12, 0.0) for a in names for b in names if a < b)
    taken = profile(
        [device(name) for name in names],
        links=links,
        all_reduce=all_reduce(payload_bytes=(100,), seconds=(0.3,), cpu_s=((0.0,),) * 2),
    )
    world = world_of(taken)
    assert world.num_measured == 2
    assert reduce_alone(world, 100, (0, 1)) == pytest.approx(0.3)
    assert reduce_alone(world, 100, (0, 1, 2)) == pytest.approx(0.6)
    assert reduce_alone(world, 100) == pytest.approx(0.9)
    assert reduce_alone(world, 100, (2,)) == 0.0


def test_what_is_alone_is_as_fast_as_it_was_alone() -> None:
    three = [device(name, alone=0.4) for name in "abc"]
    links = tuple(link(a, b) for a, b in ("ab", "ac", "bc"))
    world = world_of(profile(three, links=links, all_reduce=all_reduce(*((0.0, 0.0),) * 3)))
    full = 0.6 * 0.016
    for count, factor in ((1, 0.4), (2, 0.7), (3, 1.0)):
        seconds = world.seconds(tuple(range(count)))(compute("backward"))
        assert seconds == pytest.approx(factor * full)
        assert world.step_curve(0, count)(16) == pytest.approx(factor * 0.016)


def test_where_nothing_was_measured_together_nothing_eases() -> None:
    world = world_of(profile([device("a", alone=0.4), device("b")], links=(link("a", "b"),)))
    assert world.step_curve(0, 1)(16) == world.step_curve(0, 2)(16) == pytest.approx(0.016)


def cpu_s(taken: Profile, count: int, cluster: Cluster | None = None) -> list[float]:
    fabric = world_of(taken, cluster).fabric(tuple(range(count)))
    return [fabric.cpu_s(rank, 10**6) for rank in range(count)]


def test_what_bytes_cost_a_cpu() -> None:
    links = tuple(link(a, b) for a, b in ("ab", "ac", "bc"))
    rows = all_reduce((0.0, 0.3), (0.0, 0.6), (0.0, 0.9))

    def taken(**changes: Any) -> Profile:
        return profile([device(n, **changes) for n in "abc"], links=links, all_reduce=rows)

    assert cpu_s(taken(), 3) == pytest.approx([0.3, 0.6, 0.9])
    # each of n moves 2 (n - 1) / n of a payload: of two, 3/4 of what each of three moves
    assert cpu_s(taken(), 2) == pytest.approx([0.225, 0.45])
    assert cpu_s(taken(), 1) == [0.0]
    # with half a core, a second of its time takes two
    assert cpu_s(taken(cores=0.5), 3) == pytest.approx([0.6, 1.2, 1.8])
    assert cpu_s(taken(cores=4.0, threads=4), 3) == pytest.approx([0.3, 0.6, 0.9])
    assert cpu_s(taken(cores=4.0, threads=3), 3) == [0.0] * 3  # a core to spare
    assert cpu_s(taken(device="cuda:0"), 3) == [0.0] * 3


def test_what_bytes_cost_the_cpu_of_a_machine_like_another() -> None:
    pair = profile(
        [device("b"), device("a")], links=(link("a", "b"),), all_reduce=all_reduce(*((0, 0.4),) * 2)
    )
    assert cpu_s(pair, 2, HYPOTHETICAL) == pytest.approx([0.4, 0.2])
    unknown = profile([device("a")])
    mb = 2 * 10**6 * TRANSFER_CPU_S_PER_BYTE
    assert cpu_s(unknown, 2, HYPOTHETICAL) == pytest.approx([mb / 2, mb / 4])


def test_steps_vary_as_measured_and_alike_for_a_seed() -> None:
    deciles = (0.9, 1.0, 1.3)
    one = device(variation=deciles)
    world = world_of(profile([one, device("b")], links=(link("a", "b"),)))

    def draw(seed: int) -> list[float]:
        seconds = world.seconds((0, 1), world.luck((0, 1), seed))
        return [seconds(compute("forward", step=step)) / 0.0048 for step in range(200)]

    assert draw(1) == draw(1) != draw(2)
    mean = sum(deciles) / len(deciles)
    assert {round(factor * mean, 6) for factor in draw(1)} == set(deciles)


def test_few_draws_have_the_mean_of_many() -> None:
    """Each decile comes once before any comes again, and what they are relative to is 1."""
    luck = Luck([(0.5, 1.0, 1.5, 3.0), (0.9, 1.1)], random.Random(3))
    for _ in range(3):
        assert sum(luck.next(0) for _ in range(4)) == pytest.approx(4)
    assert sum(luck.next(1) for _ in range(2)) == pytest.approx(2)


def test_a_ranks_step_is_slow_or_fast_as_a_whole() -> None:
    world = world_of(profile([device(variation=(0.5, 1.0, 1.5, 2.0))]))
    seconds = world.seconds((0,), world.luck((0,), 0))
    factors = {
        round(seconds(compute(phase, step=step)) / world.seconds((0,))(compute(phase)), 6)
        for step in (0,)
        for phase in ("load", "forward", "backward")
    }
    assert len(factors) == 1
