"""A run that starts from given tensors: which do, which do not, and who has them then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from convoy.api.requests import job_of
from convoy.errors import UsageError
from convoy.runtime.formation import Job
from convoy.runtime.observer import LogObserver
from convoy.runtime.preparation import prepare
from convoy.runtime.settings import TrainSettings
from convoy.runtime.training import Trainee
from convoy.runtime.weights import read_weights

DATA = "synthetic:1x4x4:3:6"
NETWORK = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def other_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "1.weight": torch.randn(3, 16, generator=generator, dtype=torch.float64),
        "1.bias": torch.randn(3, generator=generator, dtype=torch.float64),
    }


def job(weights: Path | None, **options: Any) -> Job:
    given = {"weights": weights} if weights else {}
    return job_of(NETWORK, DATA, {"batch_size": 2, "steps": 2, **given, **options})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(other_weights(), tmp_path / "other.safetensors")
    return tmp_path / "other.safetensors"


def test_driver_and_ranks_start_from_them(file: Path) -> None:
    asked = job(file, precision="fp64")
    trainee = Trainee(asked, torch.device("cpu"), torch.get_num_threads())
    for network in (trainee.model, prepare(asked, LogObserver()).network):
        state = network.state_dict()
        assert all(torch.equal(state[name], t) for name, t in other_weights().items())


def test_a_run_that_loses_everything_starts_from_them_again(file: Path) -> None:
    trainee = Trainee(job(file), torch.device("cpu"), torch.get_num_threads())
    with torch.no_grad():
        trainee.model[1].weight.zero_()
    trainee._is_new = False
    trainee._begin_anew()
    assert torch.equal(trainee.model[1].weight, other_weights()["1.weight"].float())


def test_without_them_first_weights() -> None:
    trainee = Trainee(job(None), torch.device("cpu"), torch.get_num_threads())
    assert torch.equal(trainee.model[1].weight, NETWORK[1].weight)


def test_a_resumed_run_has_its_own(tmp_path: Path) -> None:
    gone = tmp_path / "gone.safetensors"
    assert read_weights(TrainSettings(weights=gone, resume=tmp_path)) is None
    assert read_weights(TrainSettings()) is None
    with pytest.raises(UsageError, match=r"--weights .*gone\.safetensors: no such file"):
        read_weights(TrainSettings(weights=gone))


def test_a_file_that_holds_no_tensors(tmp_path: Path) -> None:
    path = tmp_path / "text.safetensors"
    path.write_text("not tensors, but long enough to have a header's length")
    with pytest.raises(UsageError, match="cannot be read: .*; expected a safetensors file"):
        job(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"1.bias": None}, "1.bias is missing"),
        ({"2.bias": torch.zeros(2)}, "2.bias is not in the network"),
        ({"1.weight": torch.zeros(3, 15)}, "1.weight is 3x15 and not 3x16"),
    ],
)
def test_tensors_of_another_network(
    tmp_path: Path, change: dict[str, torch.Tensor | None], text: str
) -> None:
    """Said before anything starts."""
    tensors = {n: t for n, t in (other_weights() | change).items() if t is not None}
    save_file(tensors, tmp_path / "it.safetensors")
    with pytest.raises(UsageError, match=f"it.safetensors does not fit the network: {text}"):
        prepare(job(tmp_path / "it.safetensors"), LogObserver())
