"""Where pictures come from, and how they are brought together."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convoy.errors import DataError, UsageError
from convoy.split.client.batches import Batch, batches_of
from convoy.split.client.sources import from_stream, open_source

from .. import toy


def jpeg(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_a_folder_by_name_and_with_what_is_in_it(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.jpg", "notes.txt", "c.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = list(open_source(f"folder:{tmp_path}"))
    assert [name for name, _ in found] == ["a/z.jpg", "b.png", "c.PNG"]


class Dribble(io.BytesIO):
    """A stream that gives a few bytes at a time, as a camera's does."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 7, 7))


@pytest.mark.parametrize("kind", [io.BytesIO, Dribble])
def test_jpegs_one_after_another(kind: Any) -> None:
    files = [jpeg(value) for value in (0, 100, 200)]
    found = list(from_stream(kind(b"".join(files))))
    assert [name for name, _ in found] == ["#0", "#1", "#2"]
    assert [frame for _, frame in found] == files


def test_a_frame_is_there_once_its_last_byte_is() -> None:
    class Halting(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            got = super().read(size)
            assert got or done, "asked for more before the picture was handed on"
            return got

    done = False
    frames = from_stream(Halting(jpeg(50)))
    assert next(frames)[1] == jpeg(50)
    done = True
    assert list(frames) == []


def test_paths_line_by_line() -> None:
    found = list(from_stream(io.BytesIO(b"a.png\n\n/b c.jpg\r\nlast.png")))
    assert found == [(n, Path(n)) for n in ("a.png", "/b c.jpg", "last.png")]
    assert list(from_stream(Dribble(b"a.png\nb.png"))) == [(n, Path(n)) for n in ("a.png", "b.png")]
    assert list(from_stream(io.BytesIO(b""))) == []


def test_what_is_neither_jpegs_nor_paths() -> None:
    with pytest.raises(DataError, match="neither like a JPEG nor like a path"):
        list(from_stream(io.BytesIO(b"\x89PNG\r\n\x1a\n...")))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("folder:/nowhere", "there is no such folder"),
        ("folder:", "expected folder:PATH"),
        ("web:cam", "expected folder:PATH"),
    ],
)
def test_sources_that_are_none(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        open_source(text)


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no picture in it"):
        open_source(f"folder:{tmp_path}")


def collected(images: Any, size: int, linger_s: float = 10.0) -> list[Batch]:
    async def run() -> list[Batch]:
        return [batch async for batch in batches_of(images, toy.BY, size, linger_s)]

    return asyncio.run(asyncio.wait_for(run(), 30))


def test_batches_are_full_but_for_the_last() -> None:
    found = collected(toy.pictures(10), 4)
    assert [len(batch.items) for batch in found] == [4, 4, 2]
    assert [i.index for batch in found for i in batch.items] == list(range(10))
    np.testing.assert_array_equal(np.concatenate([b.pixels for b in found]), toy.pictures(10))
    assert collected([], 4) == []


def test_a_batch_does_not_wait_for_ever() -> None:
    async def slowly() -> Any:
        for picture in toy.pictures(3):
            yield picture
        await asyncio.sleep(0.5)
        yield toy.pictures(1)[0]

    found = collected(slowly(), 8, linger_s=0.1)
    assert [len(batch.items) for batch in found] == [3, 1]


def test_a_source_is_read_ahead_by_a_few_only() -> None:
    taken = 0

    def endless() -> Any:
        nonlocal taken
        while True:
            taken += 1
            yield toy.pictures(1)[0]

    async def run() -> None:
        batches = batches_of(endless(), toy.BY, 4, 1.0)
        await anext(batches)
        await asyncio.sleep(0.1)
        assert 4 <= taken <= 4 + 2 * 4 + 2
        await batches.aclose()

    asyncio.run(run())


def test_what_is_no_picture_keeps_its_place(tmp_path: Path) -> None:
    (batch,) = collected([("good", toy.pictures(1)[0]), ("bad", b"rubbish"), tmp_path / "no"], 3)
    assert [item.error is None for item in batch.items] == [True, False, False]
    assert [item.name for item in batch.items] == ["good", "bad", str(tmp_path / "no")]
    assert batch.pixels.shape == (1, 8, 8, 3)


def test_whatever_is_no_picture_is_its_own_result(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    lazy = Image.open(io.BytesIO((tmp_path / "cut.png").read_bytes()))  # reads its head only
    odd = [lazy, [[1, 2], [3]], ("a", 1, 2), None, np.zeros((4, 4)), toy.pictures(1)[0]]
    (batch,) = collected(odd, 6)
    assert [item.error is None for item in batch.items] == [False] * 5 + [True]
