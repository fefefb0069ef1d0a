"""Which layers are timed, and that nothing else comes of it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from convoy import networks
from convoy.cost.layers import facts_of
from convoy.runtime.layer_timer import LayerTimes, Marks, time_layers

CPU = torch.device("cpu")


def of_images(*shape: int) -> Callable[[nn.Module], Tensor]:
    """A loss of two images."""
    images = torch.arange(2.0 * torch.Size(shape).numel()).view(2, *shape).div(100).sin()

    def loss(model: nn.Module) -> Tensor:
        return model(images).square().sum()

    return loss


def timed(model: nn.Module, *shape: int) -> LayerTimes:
    return time_layers(model, CPU, of_images(*shape))


def names(times: LayerTimes) -> tuple[list[str], list[str]]:
    return list(times.forward_s), [name for name in times.backward_s if name]


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(18, 3),
    )


class Branches(nn.Module):
    """A skip, a concatenation, a layer called twice and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 3)
        self.twice = nn.Conv2d(2, 2, 3, padding=1)
        self.other = nn.Conv2d(2, 2, 1)
        self.act = nn.ReLU(inplace=True)
        self.never = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.twice(x)) + x
        x = torch.cat([self.twice(x), self.other(x)], dim=1)
        return self.last(x.flatten(1))


class Shared(nn.Module):
    """One layer at two places of the tree."""

    def __init__(self) -> None:
        super().__init__()
        dense = nn.Linear(4, 4)
        self.a = nn.Sequential(dense, nn.Tanh())
        self.b = nn.Sequential(dense)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def test_layers_forward_in_order_and_backward_in_reverse() -> None:
    assert names(timed(plain(), 1, 8, 8)) == (list("012345"), list("543210"))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (plain, (1, 8, 8)),
        (Branches, (2, 4, 4)),
        (Shared, (4,)),
        (lambda: networks.build("resnet18", input_shape=(3, 32, 32), num_classes=2), (3, 32, 32)),
        (lambda: networks.build("lenet5", input_shape=(1, 32, 32), num_classes=2), (1, 32, 32)),
    ],
    ids=["plain", "branches", "shared", "resnet18", "lenet5"],
)
def test_what_a_schedule_asks_for_was_timed(
    model: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    """Every layer of the facts forward, and backward those that do anything."""
    network = model()
    times = timed(network, *shape)
    layers = [layer.name for layer in facts_of(network, shape).layers]
    assert list(times.forward_s) == layers
    idle = {name for name, m in network.named_modules() if isinstance(m, nn.Identity)}
    assert set(times.backward_s) - {""} == set(layers) - idle
    assert all(s >= 0 for s in (*times.forward_s.values(), *times.backward_s.values()))


@pytest.mark.parametrize(("model", "shape"), [(plain, (1, 8, 8)), (Branches, (2, 4, 4))])
def test_gradients_are_those_of_a_pass_that_is_not_timed(
    model: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    watched = model()
    alone = copy.deepcopy(watched)
    timed(watched, *shape)
    of_images(*shape)(alone).backward()
    for (name, a), b in zip(watched.named_parameters(), alone.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None) == name.startswith("never")
        assert a.grad is None or torch.equal(a.grad, b.grad)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_no_hook_stays_behind() -> None:
    model = plain()
    timed(model, 1, 8, 8)
    assert hooks(model) == 0
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        timed(model, 1, 9, 30)
    assert hooks(model) == 0


def test_a_layer_that_hands_its_input_on_has_no_backward_pass() -> None:
    """What is done after its gradient has come is the work of the layer before it."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.Flatten(), nn.Linear(4, 2))
    assert names(timed(model, 4)) == (list("0123"), ["3", "0"])


def test_frozen_layers_before_those_that_learn_have_no_backward_pass() -> None:
    model = plain()
    model[0].requires_grad_(False)
    assert names(timed(model, 1, 8, 8))[1] == list("54321")


def test_a_layer_that_returns_several_tensors_is_left_to_the_one_before() -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x[:, :2], x[:, 2:]

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.halves = nn.Linear(4, 4), Halves()

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.halves(self.first(x))
            return a * b

    assert names(timed(Network(), 4)) == (["first", "halves"], ["first"])


def test_seconds_from_mark_to_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([1.0, 1.5, 4.5, 4.75])
    monkeypatch.setattr("convoy.runtime.layer_timer.time.perf_counter", lambda: next(moments))
    marks = Marks(CPU)
    for name in ("a", "b", "a", ""):
        marks.take(name)
    assert marks.seconds() == {"a": 0.75, "b": 3.0}
