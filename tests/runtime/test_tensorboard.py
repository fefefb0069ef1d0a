from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from convoy.errors import ConvoyError
from convoy.runtime.records import StepSummary
from convoy.runtime.tensorboard import Board


@pytest.fixture
def board(tmp_path: Path, no_thread_left: None) -> Iterator[Board]:
    found = Board(tmp_path / "tensorboard")
    yield found
    found.close()


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = read(folder)
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def summary(
    step: int, *, wall_s: float = 0.5, samples: int = 32, compute_s: float = 0.25
) -> StepSummary:
    times = {"compute_s": compute_s, "wait_s": 0.125, "comm_s": 0.0625, "sent_bytes": 80}
    rows = [
        {"rank": 0, "machine": "tower"} | times,
        {"rank": 1, "machine": "old"} | dict.fromkeys(times),  # lost in this step
    ]
    return StepSummary(
        step=step,
        generation=1,
        samples=samples,
        wall_s=wall_s,
        loss=1.5 + step,
        ranks=tuple(rows),
    )


def test_steps_and_evaluations_become_curves(board: Board, tmp_path: Path) -> None:
    board.steps([summary(0)])
    board.steps([])
    board.steps([summary(1, wall_s=0.0)])
    board.evaluation(1, 0.75, 0.5)
    board.close()
    both = [(0, 0.25), (1, 0.25)]
    assert scalars(tmp_path) == {
        "train/loss": [(0, 1.5), (1, 2.5)],
        "train/images_per_s": [(0, 64.0)],
        "compute_s/rank 0 (tower)": both,
        "wait_s/rank 0 (tower)": [(0, 0.125), (1, 0.125)],
        "comm_s/rank 0 (tower)": [(0, 0.0625), (1, 0.0625)],
        "sent_bytes/rank 0 (tower)": [(0, 80.0), (1, 80.0)],
        "test/accuracy": [(1, 0.75)],
        "test/loss": [(1, 0.5)],
    }


def test_steps_that_come_together_are_one_point(board: Board, tmp_path: Path) -> None:
    board.steps(
        [
            summary(4, compute_s=0.25),
            summary(5, samples=8, wall_s=1.5, compute_s=0.75),
            summary(6, samples=40, wall_s=0.0),  # nobody lived to time it
        ]
    )
    board.close()
    found = scalars(tmp_path)
    # Samples weigh losses of 5.5, 6.5 and 7.5; 40 images took 2 seconds.
    assert found["train/loss"] == [(6, pytest.approx((32 * 5.5 + 8 * 6.5 + 40 * 7.5) / 80))]
    assert found["train/images_per_s"] == [(6, 20.0)]
    ((step, seconds),) = found["compute_s/rank 0 (tower)"]
    assert (step, seconds) == (6, pytest.approx((0.25 + 0.75 + 0.25) / 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_graph_of_a_network(board: Board, tmp_path: Path, dtype: torch.dtype) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(8, 3)
    ).to(dtype)
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert board.graph(model, (1, 4, 4)) is None
    board.close()
    graph = read(tmp_path).Graph()
    names = " ".join(node.name for node in graph.node)
    assert "Conv2d" in names
    assert "Linear" in names
    assert [module.training for module in model] == [True, False, True, True, True]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Fails(nn.Module):
    """Cannot be traced, for a reason that the error words one way or another."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, _: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("too wide\nby far"), "too wide"),
        (RuntimeError("\n  \ntoo wide"), "too wide"),
        (AssertionError(), "AssertionError"),
        (ValueError("odd"), "odd"),
    ],
)
def test_a_network_that_cannot_be_traced(
    board: Board, capfd: pytest.CaptureFixture[str], error: Exception, reason: str
) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), Fails(error))
    said = board.graph(model, (1, 4, 4))
    assert said == f"the network's graph is not in TensorBoard: {reason}"
    assert all(module.training for module in model.modules())
    assert capfd.readouterr().out == ""  # stdout is for one JSON document


def test_a_network_without_parameters(board: Board, tmp_path: Path) -> None:
    assert board.graph(nn.Sequential(nn.ReLU(), nn.Flatten()), (1, 2, 2)) is None


def test_a_disk_that_is_full(
    mount_disk: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # TensorBoard writes in a thread of its own, which dies of it and would be complained of.
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    others = set(threading.enumerate())
    folder = mount_disk(size_kib=8) / "tensorboard"
    board = Board(folder)

    def write_on() -> None:
        for step in range(1000):
            board.steps([summary(step)])
        board.close()

    expected = f"cannot write {folder}: No space left on device. Make room"
    with pytest.raises(ConvoyError, match=expected):
        write_on()
    with pytest.raises(ConvoyError, match=expected):
        board.close()
    for thread in set(threading.enumerate()) - others:
        thread.join()
