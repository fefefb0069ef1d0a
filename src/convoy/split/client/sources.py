"""Where pictures come from: a folder, a video, a camera, standard input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convoy.errors import DataError, UsageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
START, END = b"\xff\xd8", b"\xff\xd9"
BLOCK = 1 << 16
LONGEST_FRAME = 1 << 26

Named = tuple[str, Any]
"""A picture's name, and its file, its bytes or its pixels."""


def open_source(text: str) -> Iterator[Named]:
    """The pictures of `folder:PATH`, `video:PATH`, `camera[:DEVICE]` or `-`.

    `-` is standard input: either JPEGs one after another (an MJPEG stream), or a path on each line.

    Raises:
        UsageError: no such source, or a folder without pictures.
    """
    kind, _, rest = text.partition(":")
    if text == "-":
        # Not sys.stdin: a thread that waits in it keeps the interpreter from ending.
        return from_stream(open(0, "rb", buffering=0, closefd=False))
    if kind == "folder" and rest:
        return iter(in_folder(Path(rest)))
    if kind == "video" and rest:
        return from_video(rest)
    if kind == "camera":
        return from_video(rest or "/dev/video0", format="v4l2")
    raise UsageError(
        f"source {text!r}: expected folder:PATH, video:PATH, camera, camera:DEVICE, or - for "
        "standard input"
    )


def in_folder(folder: Path) -> list[Named]:
    """The picture files of a folder and of those in it, by name.

    Raises:
        UsageError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise UsageError(f"source folder:{folder}: there is no such folder")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise UsageError(f"source folder:{folder}: no picture in it ({', '.join(SUFFIXES)})")
    return [(str(path.relative_to(folder)), path) for path in paths]


def from_stream(stream: Any) -> Iterator[Named]:
    """JPEGs one after another, or paths line by line.

    Args:
        stream: whose `read` returns what is there; it need not be all that was asked for.

    Raises:
        DataError: it is neither.
    """
    head = stream.read(2)
    while len(head) == 1 and (more := stream.read(1)):
        head += more
    if head == START:
        yield from _frames(stream, head)
        return
    if head[:1] and not chr(head[0]).isprintable():
        raise DataError(
            "standard input begins neither like a JPEG nor like a path: expected JPEGs one after "
            "another, or a path on each line"
        )
    for line in _lines(stream, head):
        if name := line.decode(errors="replace").strip():
            yield name, Path(name)


def from_video(path: str, **options: Any) -> Iterator[Named]:
    """The frames of a video file or device.

    Raises:
        UsageError: PyAV is not installed.
        DataError: it cannot be opened.
    """
    try:
        import av
    except ModuleNotFoundError:
        raise UsageError("video and camera need PyAV: pip install 'convoy-cnn[video]'") from None
    try:
        with av.open(path, **options) as container:
            for number, frame in enumerate(container.decode(video=0)):
                yield f"{path}#{number}", frame.to_ndarray(format="rgb24")
    except (OSError, av.error.FFmpegError, IndexError) as error:
        raise DataError(f"{path} cannot be read as a video: {error}") from None


def _frames(stream: Any, head: bytes) -> Iterator[Named]:
    """Each to the end marker that another start, or for now nothing, follows."""
    number, looked = 0, 2
    held = bytearray(head)
    while True:
        while (end := _end_of_frame(held, looked)) is not None:
            frame = bytes(held[:end])
            del held[:end]
            looked = 2
            yield f"#{number}", frame
            number += 1
        looked = max(2, len(held) - 3)  # a marker, and half of the next one, may be at the end
        block = stream.read(BLOCK)
        if not block:
            if held:
                yield f"#{number}", bytes(held)
            return
        held += block
        if len(held) > LONGEST_FRAME:
            raise DataError(f"standard input: a picture of more than {LONGEST_FRAME >> 20} MiB")


def _end_of_frame(held: bytearray, begin: int) -> int | None:
    end = held.find(END, begin)
    while end >= 0:
        if START.startswith(held[end + 2 : end + 4]):
            return end + 2
        end = held.find(END, end + 2)  # of a thumbnail within
    return None


def _lines(stream: Any, held: bytes) -> Iterator[bytes]:
    while block := stream.read(BLOCK):
        *whole, held = (held + block).split(b"\n")
        yield from whole
    yield held
