"""The compiled part, brought in when it is first needed: importing Numba takes most of a second."""

from __future__ import annotations

from functools import cache
from types import ModuleType

from convoy.errors import UsageError


@cache
def cpu() -> ModuleType:
    """`kernels.cpu.convolution`.

    Raises:
        UsageError: Numba or SciPy is not there.
    """
    try:
        import scipy.linalg.cython_blas  # noqa: F401 - the products of what is compiled

        from convoy.kernels.cpu import convolution
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("convoy"):
            raise
        raise UsageError(
            f"convolutions by algorithms of ours need {error.name}, which is not installed: "
            "pip install 'convoy-cnn[kernels]'. Without it: --conv-algorithm torch"
        ) from None
    return convolution
