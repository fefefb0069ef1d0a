"""Small files in the official layouts, a local web server, and where the real files lie."""

from __future__ import annotations

import gzip
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@pytest.fixture(autouse=True)
def _leaves_no_threads() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
        assert not thread.is_alive(), f"{thread.name} was left running"


@pytest.fixture
def real_data() -> Path:
    """The folder of real files; skips where there is none."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("CONVOY_TEST_DATA") or beside)
    if not (folder / "mnist").is_dir():
        pytest.skip(f"needs the real data files, and {folder} has none (CONVOY_TEST_DATA)")
    return folder


@pytest.fixture
def idx_bytes() -> Callable[[np.ndarray], bytes]:
    """An array of bytes as an IDX file."""

    def encode(array: np.ndarray) -> bytes:
        sizes = struct.pack(f">{array.ndim}I", *array.shape)
        return bytes((0, 0, 8, array.ndim)) + sizes + array.astype(np.uint8).tobytes()

    return encode


@pytest.fixture
def mnist_arrays() -> dict[str, np.ndarray]:
    """A small MNIST: 30 + 20 samples."""
    random = np.random.RandomState(0)
    arrays = {}
    for name, count in zip(MNIST_FILES, (30, 30, 20, 20), strict=True):
        shape = (count, 28, 28) if "images" in name else (count,)
        arrays[name] = random.randint(0, 256 if "images" in name else 10, shape).astype(np.uint8)
    return arrays


@pytest.fixture
def write_mnist(
    mnist_arrays: dict[str, np.ndarray], idx_bytes: Callable[[np.ndarray], bytes]
) -> Callable[..., None]:
    """Write the small MNIST into a folder, plain or gzipped."""

    def write(folder: Path, *, compress: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in mnist_arrays.items():
            content = idx_bytes(array)
            if compress:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)

    return write


@pytest.fixture
def cifar_arrays() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A small CIFAR-10: pixels [n, 3072] and labels [n] by name, in files of unequal length."""
    random = np.random.RandomState(1)
    arrays = {}
    for place, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        count = 4 + place
        pixels = random.randint(0, 256, (count, 3072)).astype(np.uint8)
        arrays[name] = (pixels, random.randint(0, 10, count))
    return arrays


@pytest.fixture
def cifar_binary(
    cifar_arrays: dict[str, tuple[np.ndarray, np.ndarray]],
) -> dict[str, bytes]:
    """The small CIFAR-10 as the files of the binary version."""
    files = {}
    for name, (pixels, labels) in cifar_arrays.items():
        records = np.concatenate((labels[:, None].astype(np.uint8), pixels), axis=1)
        files[f"{name}.bin"] = records.tobytes()
    return files


@pytest.fixture
def picture_folder() -> Callable[..., Path]:
    """Write flat pictures: {"train/cat": 3, ...} gives train/cat/000.png and so on."""

    def write(root: Path, counts: dict[str, int], size: tuple[int, int] = (8, 6)) -> Path:
        for place, (folder, count) in enumerate(counts.items()):
            (root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                colour = (40 * place, number, 255 - number)
                Image.new("RGB", size, colour).save(root / folder / f"{number:03}.png")
        return root

    return write


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    files: dict[str, bytes]
    asked: list[str]
    url: str


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        length = len(content)
        if self.path.endswith("?cut"):
            content = content[: length // 2]
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_args: object) -> None:
        """Quiet."""


@pytest.fixture
def web() -> Iterator[_Server]:
    """A server on 127.0.0.1: fill `files` by path; `url` is its address, `asked` what came."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.files, server.asked = {}, []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def refusing() -> Iterator[str]:
    """An address where connections are refused: its port is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
