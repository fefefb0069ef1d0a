"""A finished run whose network is to be narrowed, as files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from convoy import networks
from convoy.runtime.run_folder import RunFolder
from convoy.runtime.settings import TrainSettings
from convoy.split.narrow_training import FullRun

NETWORK, SHAPE = "chavan:3-16-32-10", (1, 8, 8)


@pytest.fixture
def full(tmp_path: Path) -> FullRun:
    """A run of 20 epochs of a network with 16 filters, which need not have been trained."""
    folder = RunFolder(tmp_path / "full")
    folder.path.mkdir()
    settings = TrainSettings(network=NETWORK, strategy="data", workers=2, epochs=20, lr=0.04)
    folder.write_settings(settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = networks.build(NETWORK, input_shape=SHAPE, num_classes=10)
    return FullRun(
        path=folder.path,
        settings=settings,
        tensors=network.state_dict(),
        image_shape=SHAPE,
        classes=10,
        accuracy=0.9,
        loss=0.25,
        epochs=20.0,
    )
