from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from convoy.datasets import open_dataset, synthetic
from convoy.datasets.memory import MemoryImages
from convoy.errors import UsageError


def _pixels(data: object) -> torch.Tensor:
    assert isinstance(data, MemoryImages)
    return data.pixels


def test_sizes() -> None:
    data = open_dataset("synthetic:3x32x24:10")
    assert (len(data.train), len(data.test)) == (2048, 512)
    assert data.train.image_shape == (3, 32, 24)
    assert data.train.num_classes == 10
    data = open_dataset("synthetic:1x5x3:4:100")
    assert (len(data.train), len(data.test)) == (100, 25)
    assert len(open_dataset("synthetic:1x1x1:1:1").test) == 1


def test_the_bytes_are_the_same_for_ever_and_for_every_seed() -> None:
    for seed in (0, 5):
        data = open_dataset("synthetic:3x7x9:10:70", seed=seed)
        content = _pixels(data.train).numpy().tobytes() + _pixels(data.test).numpy().tobytes()
        assert (
            hashlib.sha256(content).hexdigest()
            == "83f1695bbcaf041e807be206d7aba387a61a7f6e991175013f42f3a739ebfc36"
        )


def test_more_samples_begin_with_the_same_ones() -> None:
    few, many = (open_dataset(f"synthetic:1x8x8:3:{count}") for count in (50, 200))
    assert torch.equal(_pixels(few.train), _pixels(many.train)[:50])


def test_training_and_test_samples_differ() -> None:
    data = open_dataset("synthetic:1x8x8:3:80")
    assert not torch.equal(_pixels(data.train)[:20], _pixels(data.test))


def test_the_classes_can_be_learnt() -> None:
    data = open_dataset("synthetic:3x16x16:10:512")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for part in torch.arange(512).split(32):
        images, labels = data.train.batch(part)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, labels = data.test.batch(torch.arange(128))
    assert (model(images).argmax(dim=1) == labels).double().mean() > 0.9


@pytest.mark.parametrize(
    "spec",
    [
        "synthetic",
        "synthetic:",
        "synthetic:3x32:10",
        "synthetic:3x32x32",
        "synthetic:3x32x32:0",
        "synthetic:0x32x32:10",
        "synthetic:3x32x32:10:0",
        "synthetic:3x32x32:10:5:5",
        "synthetic:3x32x32:ten",
        "synthetic:3x32x-2:10",
        "synthetic:3×32×32:10",
    ],
)
def test_a_malformed_specification_shows_the_form(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_dataset(spec)
    message = str(caught.value)
    assert repr(spec) in message
    assert "synthetic:CxHxW:classes[:count]" in message
    assert "synthetic:3x32x32:10" in message


def test_more_than_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(available=2_000_000)
    monkeypatch.setattr(synthetic.psutil, "virtual_memory", lambda: memory)
    with pytest.raises(UsageError, match=r"7\.5 GB.*0\.0 GB.*fewer samples"):
        open_dataset("synthetic:3x1000x1000:10:2000")
