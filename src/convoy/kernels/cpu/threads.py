"""Work divided among threads that hold no lock while they compute: torch's own, where it can be.

torch's threads are OpenMP's. After each of its operations they go on spinning for some
milliseconds, in case there is more to do, and threads of ours would share their cores with them:
twice as slow on two cores. GNU's OpenMP, which torch's Linux wheels bring, can be asked to run any
function by the same threads (`GOMP_parallel`, to which compilers translate a parallel region).
Where torch has another, the threads are Python's.

What they run is compiled code that has let go of the interpreter. The products of `lowering` are
BLAS's, with a thread of its own for each of ours: SciPy's is told so while we are at work.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from threadpoolctl import ThreadpoolController

from convoy.kernels.cpu.compiling import Array
from convoy.kernels.cpu.tile import LINE_BYTES

_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()
_own = threading.local()
_users: list[None] = []
_before: list[tuple[Any, int]] = []
_CALLED = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def shares(total: int, parts: int, unit: int = 1) -> list[tuple[int, int]]:
    """Nearly equal ranges that cover 0 to `total`, divided at multiples of `unit` only."""
    units = -(-total // unit)
    parts = max(1, min(parts, units))
    edges = [min(total, unit * (units * number // parts)) for number in range(parts + 1)]
    return list(itertools.pairwise(edges))


def by_all(work: Callable[[int], Any], count: int) -> None:
    """Call `work(number)` by so many threads, all at once."""
    in_parallel(lambda number, _first, _last: work(number), [(0, 0)] * count)


def in_parallel(work: Callable[[int, int, int], Any], ranges: list[tuple[int, int]]) -> None:
    """Call `work(number, first, last)` for each range, all at once."""
    if len(ranges) == 1:
        work(0, *ranges[0])
        return
    openmp = _torchs_openmp()
    if openmp is None:
        _by_threads_of_ours(work, ranges)
        return
    failed: list[BaseException] = []

    def region(_nothing: int | None) -> None:
        try:
            team, me = openmp.omp_get_num_threads(), openmp.omp_get_thread_num()
            for number in range(me, len(ranges), team):
                work(number, *ranges[number])
        except BaseException as error:
            failed.append(error)

    openmp.GOMP_parallel(_CALLED(region), None, len(ranges), 0)
    if failed:
        raise failed[0]


def _by_threads_of_ours(
    work: Callable[[int, int, int], Any], ranges: list[tuple[int, int]]
) -> None:
    pool = _pool(len(ranges) - 1)
    waiting = [pool.submit(work, number, *ranges[number]) for number in range(1, len(ranges))]
    try:
        work(0, *ranges[0])
    finally:
        for one in waiting:
            one.result()


def rooms(count: int, elements: int, dtype: DTypeLike) -> list[Array]:
    """Memory for so many threads, the caller's own: made once, grown, and as it was left.

    It begins with a line of the cache, as `aligned` has it.
    """
    kept: dict[tuple[str, int], Array] = vars(_own).setdefault("rooms", {})
    found = []
    for number in range(count):
        key = (np.dtype(dtype).char, number)
        if key not in kept or kept[key].size < elements:
            kept[key] = aligned(elements, dtype)
        found.append(kept[key])
    return found


def aligned(elements: int, dtype: DTypeLike) -> Array:
    """Memory that begins with a line of the cache: a vector then never lies in two."""
    size = np.dtype(dtype).itemsize
    found = np.empty(elements + LINE_BYTES // size, dtype)
    first = -found.ctypes.data % LINE_BYTES // size
    return found[first : first + elements]


def forget_rooms() -> None:
    """Give the caller's memory back."""
    vars(_own).pop("rooms", None)


def _pool(size: int) -> ThreadPoolExecutor:
    with _lock:
        if size not in _pools:
            _pools[size] = ThreadPoolExecutor(size, thread_name_prefix="convolution")
        return _pools[size]


os.register_at_fork(after_in_child=_pools.clear)


@cache
def _torchs_openmp() -> Any:
    """GNU's OpenMP as torch has it loaded; None where it has another."""
    import torch

    home = Path(torch.__file__).parent
    for one in ThreadpoolController().select(user_api="openmp").lib_controllers:
        path = Path(one.filepath)
        is_torchs = {home, home.with_name("torch.libs")} & set(path.parents)
        if "libgomp" in path.name and is_torchs:
            library = ctypes.CDLL(str(path))
            if hasattr(library, "GOMP_parallel"):
                library.GOMP_parallel.argtypes = [
                    _CALLED, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint,
                ]  # fmt: skip
                library.GOMP_parallel.restype = None
                return library
    return None


@cache
def _blas() -> Any:
    """SciPy's."""
    import scipy.linalg.cython_blas  # noqa: F401 - it is loaded here, to be found

    found = ThreadpoolController().select(user_api="blas").lib_controllers
    return [one for one in found if "scipy" in str(one.filepath)]


@contextmanager
def one_blas_thread_each() -> Iterator[None]:
    """Within it SciPy's BLAS has no threads of its own."""
    with _lock:  # the first of several callers notes what there was, the last restores it
        if not _users:
            _before[:] = [(one, one.get_num_threads()) for one in _blas()]
            for one, _ in _before:
                one.set_num_threads(1)
        _users.append(None)
    try:
        yield
    finally:
        with _lock:
            _users.pop()
            if not _users:
                for one, number in _before:
                    one.set_num_threads(number)
