"""Schedules' passes by hand, and their buckets against DistributedDataParallel's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from convoy import networks
from convoy.cost.layers import LayerSize, NetworkFacts, facts_of
from convoy.cost.schedule import Collective, Compute, Schedule
from convoy.strategies import Problem, Worker, make_strategy
from convoy.strategies.passes import BUCKET_BYTES, FIRST_BUCKET_BYTES, Buckets

from .small_networks import branched


@pytest.fixture(scope="module")
def _group() -> Iterator[None]:
    """A process group of one, which DistributedDataParallel wants."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def schedule_of(facts: NetworkFacts, num_ranks: int = 2, **options: Any) -> Schedule:
    element_bytes = options.pop("element_bytes", 4)
    strategy = make_strategy("data", {"batch_norm": "local"} | options)
    workers = tuple(Worker(index=i, machine=f"m{i}", device="cpu") for i in range(num_ranks))
    problem = Problem(
        batch_size=3 * num_ranks, workers=workers, network=facts, element_bytes=element_bytes
    )
    return strategy.schedule(strategy.plan(problem), 0)


def payloads(schedule: Schedule) -> list[int]:
    return [o.payload_bytes for o in schedule if isinstance(o, Collective)]


def ddp_buckets(
    network: nn.Module, shape: tuple[int, ...], wire_bytes: int, *, unused: bool = False
) -> list[int]:
    """Bytes of each bucket of a second step: DDP lays them out anew after the first."""
    found: list[int] = []
    replica = DistributedDataParallel(
        network, init_sync=False, gradient_as_bucket_view=True, find_unused_parameters=unused
    )

    def hook(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        found.append(bucket.buffer().numel() * wire_bytes)
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    hook.__annotations__ = {
        "bucket": dist.GradBucket,
        "return": torch.futures.Future[Tensor],
    }  # DDP compares objects
    replica.register_comm_hook(None, hook)
    for _ in range(2):
        found.clear()
        dtype = next(network.parameters()).dtype
        replica(torch.randn(2, *shape, dtype=dtype)).sum().backward()
    return found


def convolutions() -> nn.Module:
    """Biases at the edges of buckets: 4 convolutions of 9 MB, and dense layers of 2 MB."""
    return nn.Sequential(
        *(nn.Conv2d(512, 512, 3, padding=1) for _ in range(4)),
        nn.BatchNorm2d(512),
        nn.Flatten(),
        nn.Linear(512, 1000),
        nn.Linear(1000, 262),
        nn.Linear(262, 3),
    )


def dense() -> nn.Module:
    """Each weight fills a bucket but for a few bytes, so that biases decide."""
    return nn.Sequential(
        nn.Linear(4, 2**10),
        nn.Linear(2**10, 6400 - 1),
        nn.Linear(6400 - 1, 2**10),
        nn.Linear(2**10, 2**8),
    )


def built(name: str, shape: tuple[int, int, int]) -> Callable[[], nn.Module]:
    return lambda: networks.build(name, input_shape=shape, num_classes=10)


@pytest.mark.parametrize(
    ("network", "shape", "num_buckets"),
    [
        pytest.param(built("lenet5", (1, 32, 32)), (1, 32, 32), 1, id="lenet5"),
        pytest.param(built("cifar10-full", (3, 32, 32)), (3, 32, 32), 1, id="cifar10-full"),
        pytest.param(built("expression", (1, 48, 48)), (1, 48, 48), 2, id="expression"),
        pytest.param(built("resnet18", (3, 32, 32)), (3, 32, 32), 3, id="resnet18"),
        pytest.param(built("googlenet", (3, 64, 64)), (3, 64, 64), 2, id="googlenet"),
        pytest.param(built("caffenet", (3, 227, 227)), (3, 227, 227), 3, id="caffenet"),
        pytest.param(convolutions, (512, 1, 1), 3, id="convolutions"),
        pytest.param(dense, (4,), 4, id="dense"),
    ],
)
@pytest.mark.usefixtures("_group")
def test_buckets_as_ddp_has_them(
    network: Callable[[], nn.Module], shape: tuple[int, ...], num_buckets: int
) -> None:
    model = network()
    found = payloads(schedule_of(facts_of(model, shape)))
    assert found == ddp_buckets(model, shape, 4)
    assert len(found) == num_buckets
    assert sum(found) == 4 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("wire", "dtype"), [("bf16", torch.float32), ("fp32", torch.float64)])
@pytest.mark.usefixtures("_group")
def test_buckets_are_full_as_computed_and_not_as_sent(wire: str, dtype: torch.dtype) -> None:
    model = convolutions().to(dtype)
    facts = facts_of(model, (512, 1, 1))
    found = payloads(schedule_of(facts, wire=wire, element_bytes=dtype.itemsize))
    assert found == ddp_buckets(model, (512, 1, 1), 2 if wire == "bf16" else 8)


@pytest.mark.usefixtures("_group")
def test_of_parameters_that_are_never_used_the_bytes_are_right() -> None:
    """Only their sum: DDP keeps the groups of a network that it has not seen in use."""
    model = branched()
    facts = facts_of(model, (1, 6, 6))
    assert [layer.name for layer in facts.layers] == [
        "stem",
        "grouped",
        "pointwise",
        "twice",
        "classify",
    ]
    # weights, then biases; of a dense layer the other way round; what is idle comes last of all
    assert [layer.parameters for layer in facts.layers] == [
        (36, 4, 4, 2),
        (72, 4),
        (8, 2),
        (324, 6),
        (3, 18),
    ]
    found = payloads(schedule_of(facts))
    assert sum(found) == sum(ddp_buckets(model, (1, 6, 6), 4, unused=True))
    assert sum(found) == 4 * facts.num_parameters == 4 * sum(p.numel() for p in model.parameters())


class Tied(nn.Module):
    """The second dense layer has the first one's weight; the convolution does not learn."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1).requires_grad_(False)
        self.first = nn.Linear(800, 800)
        self.second = nn.Linear(800, 800)
        self.second.weight = self.first.weight
        self.third = nn.Linear(800, 800)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(1)
        out: Tensor = self.third(self.second(self.first(x)))
        return out


@pytest.mark.usefixtures("_group")
def test_a_shared_weight_is_ready_where_it_was_used_first() -> None:
    model = Tied()
    facts = facts_of(model, (1, 20, 20))
    assert [layer.parameters for layer in facts.layers] == [
        (),
        (800, 640_000),
        (800,),
        (800, 640_000),
    ]
    found = payloads(schedule_of(facts))
    assert found == ddp_buckets(model, (1, 20, 20), 4)
    assert found == [4 * 640_800, 4 * 641_600]


PARAMETERS = st.lists(st.integers(1, 9_000_000), max_size=4).map(tuple)


@given(st.lists(PARAMETERS, max_size=8), st.sampled_from([(4, 4), (4, 2), (8, 8)]))
def test_no_gradient_is_lost_or_sent_twice(
    layers: list[tuple[int, ...]], widths: tuple[int, int]
) -> None:
    buckets = Buckets(*widths)
    full = [b for own in layers for b in buckets.fill(LayerSize(name="x", parameters=own))]
    assert sum(full) + buckets.rest() == sum(map(sum, layers)) * widths[1]
    for i, size in enumerate(full):
        assert size * widths[0] // widths[1] >= (BUCKET_BYTES if i else FIRST_BUCKET_BYTES)
    assert buckets.rest() * widths[0] // widths[1] < (BUCKET_BYTES if full else FIRST_BUCKET_BYTES)


TWO = NetworkFacts(
    num_parameters=1_000_006,
    num_buffers=4,
    batch_norm_channels=(2,),
    layers=(
        LayerSize(name="conv", parameters=(6,)),
        LayerSize(name="norm", batch_norm_channels=2),
        LayerSize(name="fc", parameters=(1_000_000,)),
    ),
)


def drawn(schedule: Schedule) -> list[str]:
    """Each operation in a word, with what it waits for."""
    return [
        f"{o.phase} {o.layer} r{o.rank} {o.after}".replace("  ", " ")
        if isinstance(o, Compute)
        else f"sum {o.payload_bytes} {o.after}"  # type: ignore[union-attr]
        for o in schedule
    ]


def test_a_bucket_leaves_while_the_pass_goes_on() -> None:
    assert drawn(schedule_of(TWO)) == [
        "load r0 ()",
        "load r1 ()",
        "forward conv r0 (0,)",
        "forward conv r1 (1,)",
        "forward norm r0 (2,)",
        "forward norm r1 (3,)",
        "forward fc r0 (4,)",
        "forward fc r1 (5,)",
        "replica r0 (6,)",
        "replica r1 (7,)",
        "backward fc r0 (8,)",
        "backward fc r1 (9,)",
        "sum 4000000 (10, 11)",
        "backward norm r0 (10,)",
        "backward norm r1 (11,)",
        "backward conv r0 (13,)",
        "backward conv r1 (14,)",
        "sum 24 (15, 16)",
        "update r0 (15, 12, 17)",
        "update r1 (16, 12, 17)",
    ]


def test_batch_normalisation_holds_a_pass_up() -> None:
    """Forward 2 C + 1 doubles, backward 2 C: what comes next waits for them."""
    found = drawn(schedule_of(TWO, batch_norm="sync"))
    assert "sum 40 (4, 5)" in found
    assert found[found.index("sum 40 (4, 5)") + 1] == "forward fc r0 (6,)"
    assert found.count("sum 32 (14, 15)") == 1
    assert found[found.index("sum 32 (14, 15)") + 1] == "backward conv r0 (16,)"


def test_alone_nothing_is_sent() -> None:
    found = drawn(schedule_of(TWO, num_ranks=1, batch_norm="sync"))
    assert not [line for line in found if line.startswith(("sum", "replica"))]
    strategy = make_strategy("single", {})
    worker = Worker(index=0, machine="m", device="cpu")
    plan = strategy.plan(Problem(batch_size=3, workers=(worker,), network=TWO))
    assert drawn(strategy.schedule(plan, 0)) == found


def test_a_network_that_nobody_has_traced_is_one_layer() -> None:
    facts = NetworkFacts(num_parameters=7, num_buffers=4, batch_norm_channels=(2,))
    assert drawn(schedule_of(facts, batch_norm="sync")) == [
        "load r0 ()",
        "load r1 ()",
        "forward r0 (0,)",
        "forward r1 (1,)",
        "replica r0 (2,)",
        "replica r1 (3,)",
        "backward r0 (4,)",
        "backward r1 (5,)",
        "sum 28 (6, 7)",
        "sum 40 (6, 7)",
        "sum 32 (6, 7)",
        "update r0 (6, 8, 9, 10)",
        "update r1 (7, 8, 9, 10)",
    ]
