"""One server for all tests of this folder that do not change it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from . import tiny
from .running import Running, running


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    tiny.export(folder)
    return folder


@pytest.fixture(scope="session")
def served(exported: Path) -> Iterator[Running]:
    with running(exported) as server:
        yield server


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(0)
