"""Fetch a data set's files from their official addresses, whole and checked or not at all."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, final

import pooch

from convoy.errors import DataError

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 16

MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""Of the decompressed files: mirrors differ in how they compressed them."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where files come from and what they must be. Another set of addresses is another mirror."""

    mnist: tuple[str, ...] = (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    )
    """Folders, tried in this order, that hold NAME.gz for each name of `mnist_md5`."""
    mnist_md5: Mapping[str, str] = field(default_factory=lambda: dict(MNIST_MD5))
    """MD5 of each decompressed file, by name."""
    cifar10: tuple[str, ...] = ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",)
    """Archives of the binary version, tried in this order."""
    cifar10_md5: str = "c32a1d4ab5d03f1284b67883e8d87530"
    """MD5 of the archive."""
    patience_s: float = 14.0
    """How long all the addresses of a file together may take to answer with a first byte."""
    stall_s: float = 30.0
    """How long a download that has begun may send nothing."""


OFFICIAL = Sources()


def fetch(
    urls: Sequence[str],
    folder: Path,
    install: Callable[[Path, Path], None],
    *,
    sources: Sources,
    missing: str,
    by_hand: str,
) -> None:
    """Download from the first of `urls` that answers, then `install(file, scratch)` it.

    `scratch` is an empty folder on the file system of `folder`, so `install`
    can build there and move what is whole into place; it raises DataError if
    the file is not the right one. Everything else is cleared away. Raises
    DataError that says what is `missing`, what was tried and, with `by_hand`,
    what to do.
    """
    tried: list[str] = []
    for url in urls:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as name:
                scratch = Path(name, "scratch")
                scratch.mkdir()
                # A warning, so that it shows wherever logging was not set up: using the
                # network, and perhaps minutes, is worth saying.
                logger.warning("downloading %s to %s", url, folder)
                _stream(url, Path(name, "file"), sources.patience_s / len(urls), sources.stall_s)
                install(Path(name, "file"), scratch)
                return
        except (DataError, OSError) as error:  # requests' own errors are OSErrors
            tried.append(f"  {url}: {error}")
    raise DataError("\n".join([missing, "Tried:", *tried, by_hand]))


def md5(path: Path) -> str:
    """The MD5 of a file, as published sums are written."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def check_md5(path: Path, expected: str, what: str) -> None:
    """Raise DataError unless the MD5 of `path` is `expected`."""
    found = md5(path)
    if found != expected:
        raise DataError(
            f"the MD5 of {what} is {found}, expected {expected} ({path.stat().st_size} bytes came)"
        )


@final
class _Sink:
    """A file that tells when the first bytes come, and refuses them once nobody waits."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.started = threading.Event()
        self.abandoned = False

    def write(self, chunk: bytes) -> None:
        if self.abandoned:
            raise OSError("the download was given up")
        self.started.set()
        self.file.write(chunk)

    def flush(self) -> None:
        """Pooch asks after every chunk; closing the file is enough."""


def _stream(url: str, target: Path, first_byte_s: float, stall_s: float) -> None:
    """Write what `url` gives to `target`. Raises OSError.

    A socket's timeout holds for each address of a host in turn and not at all
    for looking its name up, which can take longer than anyone waits. So the
    request runs in a thread of its own, and that is left behind (it ends at
    its next timeout) when no byte came in time.
    """
    failures: list[Exception] = []
    download = pooch.HTTPDownloader(chunk_size=_CHUNK_BYTES, timeout=(first_byte_s, stall_s))

    def work() -> None:
        try:
            download(url, sink, None)
        except Exception as error:  # handed to the thread that waits
            failures.append(error)
        finally:
            sink.started.set()

    with target.open("wb") as file:
        sink = _Sink(file)
        thread = threading.Thread(target=work, daemon=True, name="convoy-download")
        thread.start()
        try:
            if not sink.started.wait(first_byte_s):
                raise TimeoutError(f"no answer within {first_byte_s:.1f} s")
            thread.join()
        finally:
            sink.abandoned = True
    if failures:
        raise OSError(_reason(failures.pop())) from None


def _reason(failure: Exception) -> str:
    """What went wrong in one line: urllib3 keeps it inside what requests raises around it."""
    inner = getattr(failure.args[0], "reason", None) if failure.args else None
    return f"{type(failure).__name__}: {inner or failure}"
