"""The GPU kernels, thread by thread in Numba's simulator, and what is said without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convoy.errors import UnknownNameError, UsageError
from convoy.kernels.gpu.forward import KERNELS, forward

SCRIPT = Path(__file__).parent / "gpu_in_simulator.py"
ZEROS = np.zeros((1, 1, 4, 4), "float32"), np.zeros((1, 1, 2, 2), "float32"), np.zeros(1, "float32")
OUTPUTS = np.zeros((1, 1, 3, 3), "float32")


def test_they_are_torchs_convolution() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all alike\n" * len(KERNELS)


def test_without_a_gpu_it_says_so() -> None:
    cuda = pytest.importorskip("numba.cuda")
    if cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UsageError, match=r"need a CUDA GPU.*cuda\.detect"):
        forward(*ZEROS, outputs=OUTPUTS)


def test_without_the_extra_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from convoy.kernels.gpu import forward as module

    monkeypatch.setitem(sys.modules, "convoy.kernels.gpu.kernels", None)
    monkeypatch.delattr("convoy.kernels.gpu.kernels", raising=False)
    module._kernels.cache_clear()
    with pytest.raises(UsageError, match=r"convoy-cnn\[gpu\]"):
        forward(*ZEROS, outputs=OUTPUTS)


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(UnknownNameError, match="blocked"):
        forward(*ZEROS, kernel="block", outputs=OUTPUTS)
    with pytest.raises(UsageError, match=r"outputs of \[1, 1, 3, 3\]: expected \[1, 1, 5, 5\]"):
        forward(*ZEROS, padding=1, outputs=OUTPUTS)
    with pytest.raises(UsageError, match="int32"):
        forward(ZEROS[0].astype("int32"), *ZEROS[1:], outputs=OUTPUTS)
