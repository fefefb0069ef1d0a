from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from convoy.errors import CheckpointError
from convoy.runtime.checkpoint import (
    Checkpoint,
    newest_checkpoint,
    parts_for,
    read_checkpoint,
    write_checkpoint,
)
from convoy.runtime.formation import Part
from convoy.state import Tensors
from convoy.strategies import Pending

FILES = ("checkpoint.json", "state-0.safetensors", "state-1.safetensors")


def tensors(value: float) -> Tensors:
    return {
        "model/weight": torch.full((3, 2), value) / 3,
        "model/double": torch.tensor([value, float("-inf"), 1e-310], dtype=torch.float64),
        "model/half": torch.tensor([value], dtype=torch.bfloat16),
        "model/num_batches_tracked": torch.tensor(2**53 + 1),
        "model/empty": torch.empty(0, 4),
        "optimizer/weight/step": torch.tensor(value),
        "optimizer/weight/mask": torch.tensor([True, False]),
    }


def checkpoint(step: int, *, ranks: int = 2, generation: int = 1) -> Checkpoint:
    parts = tuple(
        Part(
            tensors=tensors(step + rank / 7),
            pending=Pending(samples=rank + 1, step_samples=3) if ranks > 1 else Pending(),
        )
        for rank in range(ranks)
    )
    meta = {"layout": "contiguous", "shares": [2, 1], "settings": {"lr": 0.1}, "none": None}
    return Checkpoint(step=step, generation=generation, parts=parts, meta=meta)


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert (one.step, one.generation, one.meta) == (other.step, other.generation, other.meta)
    assert [part.pending for part in one.parts] == [part.pending for part in other.parts]
    for mine, theirs in zip(one.parts, other.parts, strict=True):
        assert mine.tensors.keys() == theirs.tensors.keys()
        for name, tensor in mine.tensors.items():
            assert tensor.dtype == theirs.tensors[name].dtype
            assert tensor.shape == theirs.tensors[name].shape
            assert bits(tensor) == bits(theirs.tensors[name]), name


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("ranks", [1, 3])
def test_what_is_written_is_read_bit_for_bit(tmp_path: Path, ranks: int) -> None:
    path = write_checkpoint(tmp_path / "new" / "checkpoints", checkpoint(12, ranks=ranks), keep=3)
    assert path == tmp_path / "new" / "checkpoints" / "step-12"
    assert names(path) == ["checkpoint.json", *(f"state-{r}.safetensors" for r in range(ranks))]
    assert_same(read_checkpoint(path), checkpoint(12, ranks=ranks))


def test_more_ranks_than_ten_keep_their_order(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, checkpoint(1, ranks=12), keep=1)
    assert_same(read_checkpoint(path), checkpoint(1, ranks=12))


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11, 100):
        write_checkpoint(tmp_path, checkpoint(step), keep=2)
    assert names(tmp_path) == ["step-100", "step-11"]
    found, warnings = newest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, warnings) == (100, [])


def test_nothing_to_find(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "absent") == (None, [])
    assert newest_checkpoint(tmp_path) == (None, [])


def flip_bit(place: float) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        at = min(int(place * len(data)), len(data) - 1)
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return damage


def cut_at(place: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: min(int(place * len(data)), len(data) - 1)]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage",
    [
        *(pytest.param(flip_bit(i / 16), id=f"bit-{i}-of-16") for i in range(17)),
        *(pytest.param(cut_at(i / 4), id=f"cut-{i}-of-4") for i in range(5)),
        pytest.param(lambda data: data + b"\0", id="longer"),
        pytest.param(lambda data: b"\xff" * len(data), id="overwritten"),
    ],
)
def test_a_damaged_file_and_the_one_before_is_taken(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    write_checkpoint(tmp_path, checkpoint(1), keep=3)
    path = write_checkpoint(tmp_path, checkpoint(2), keep=3) / name
    path.write_bytes(damage(path.read_bytes()))
    found, (warning,) = newest_checkpoint(tmp_path)
    assert found is not None
    assert_same(found, checkpoint(1))
    assert str(path) in warning


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    path = write_checkpoint(tmp_path, checkpoint(2), keep=3)
    (path / name).unlink()
    found, (warning,) = newest_checkpoint(tmp_path)
    assert found is None
    assert warning == f"{path / name} cannot be read: No such file or directory"


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '"step"', '{"sha256": "0"}', "{" * 9])
def test_a_header_that_is_none(tmp_path: Path, text: str) -> None:
    path = write_checkpoint(tmp_path, checkpoint(2), keep=3)
    (path / "checkpoint.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json .*(is damaged|was altered)"):
        read_checkpoint(path)


def rewrite_header(path: Path, **changes: Any) -> None:
    """Change the header and make its checksum right again, as another version would."""
    body = json.loads((path / "checkpoint.json").read_text()) | changes
    del body["sha256"]
    body["sha256"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (path / "checkpoint.json").write_text(json.dumps(body))


def test_another_format_version(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, checkpoint(2), keep=3)
    rewrite_header(path)
    assert_same(read_checkpoint(path), checkpoint(2))
    rewrite_header(path, version=2)
    with pytest.raises(CheckpointError, match="has format version 2; this Convoy reads 1"):
        read_checkpoint(path)


def test_leftovers_and_strangers_are_ignored(tmp_path: Path) -> None:
    whole = write_checkpoint(tmp_path, checkpoint(3), keep=3)
    for name in (".step-9.123", ".old-8.123", "step-9.tmp", "step-x", "step-"):
        shutil.copytree(whole, tmp_path / name)
    (tmp_path / "step-10").write_text("a file")
    found, (warning,) = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 3
    assert "step-10" in warning


def test_the_next_write_removes_what_a_crash_left(tmp_path: Path) -> None:
    whole = write_checkpoint(tmp_path, checkpoint(3), keep=3)
    for name in (".step-9.123", ".old-8.123", f".step-4.{os.getpid()}"):
        shutil.copytree(whole, tmp_path / name)
    write_checkpoint(tmp_path, checkpoint(4), keep=3)
    assert names(tmp_path) == ["step-3", "step-4"]


def test_the_one_just_written_outlives_a_past_that_was_rolled_back(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write_checkpoint(tmp_path, checkpoint(step), keep=3)
    (tmp_path / "step-30" / "checkpoint.json").unlink()  # so training goes on from 20
    write_checkpoint(tmp_path, checkpoint(25), keep=1)
    found, warnings = newest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, warnings) == (25, [])


def test_a_step_done_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint(5, ranks=3, generation=1), keep=3)
    write_checkpoint(tmp_path, checkpoint(5, ranks=1, generation=2), keep=3)
    assert names(tmp_path) == ["step-5"]
    assert_same(read_checkpoint(tmp_path / "step-5"), checkpoint(5, ranks=1, generation=2))


class Fault:
    """Fails one call of a function, the one after `good` others, as a full disk would."""

    def __init__(self, function: Callable[..., Any], good: int) -> None:
        self.function, self.good, self.failed = function, good, False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.good == 0 and not self.failed:
            self.failed = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.good -= 1
        return self.function(*args, **kwargs)


@pytest.mark.parametrize("again", [False, True], ids=["new", "again"])
@pytest.mark.parametrize("good", range(6))
@pytest.mark.parametrize(
    ("owner", "name"),
    [(os, "fsync"), (Path, "open"), (Path, "rename"), (Path, "mkdir")],
    ids=["fsync", "open", "rename", "mkdir"],
)
def test_a_write_that_fails_leaves_nothing_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, good: int, again: bool
) -> None:
    before, new = checkpoint(1), checkpoint(1 if again else 2, generation=2)
    write_checkpoint(tmp_path, before, keep=3)
    fault = Fault(getattr(owner, name), good)
    said = ""
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, lambda *a, **k: fault(*a, **k))
        try:
            write_checkpoint(tmp_path, new, keep=3)
        except CheckpointError as error:
            said = str(error)
    assert bool(said) == fault.failed
    if said:
        assert f"under {tmp_path}: No space left on device" in said
        assert f"Make room, then go on with --resume {tmp_path.parent}" in said
    assert set(names(tmp_path)) <= {"step-1", "step-2"}
    found, warnings = newest_checkpoint(tmp_path)
    assert warnings == []
    assert found is not None
    assert_same(found, new if found.generation == 2 else before)
    if not said:
        assert found.generation == 2


def test_a_disk_that_is_really_full(mount_disk: Callable[..., Path]) -> None:
    folder = mount_disk(size_kib=64) / "checkpoints"
    write_checkpoint(folder, checkpoint(1), keep=3)
    large = Part(tensors={"model/weight": torch.zeros(15_000)})
    with pytest.raises(CheckpointError) as caught:
        write_checkpoint(folder, Checkpoint(step=2, generation=1, parts=(large,), meta={}), keep=3)
    said = str(caught.value)
    assert f"cannot write the checkpoint of step 2 under {folder}: No space left" in said
    assert "bytes are free there. The checkpoint of step 1 is intact. Make room" in said
    assert names(folder) == ["step-1"]
    assert_same(read_checkpoint(folder / "step-1"), checkpoint(1))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write the checkpoint of step 1 under"):
        write_checkpoint(tmp_path / "file" / "checkpoints", checkpoint(1), keep=1)


def test_nothing_to_hand_out() -> None:
    assert parts_for(None, 3) == ([None, None, None], 0)


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_one_state_for_all_goes_through_rank_0(num_ranks: int) -> None:
    saved = checkpoint(4, ranks=1)
    assert parts_for(saved, num_ranks) == ([saved.parts[0], *[None] * (num_ranks - 1)], 0)


def test_states_that_differ_go_back_to_their_ranks() -> None:
    saved = checkpoint(4, ranks=3)
    assert parts_for(saved, 3) == (list(saved.parts), None)


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_states_that_differ_are_averaged_for_another_number_of_ranks(num_ranks: int) -> None:
    saved = checkpoint(4, ranks=3)  # of 1, 2 and 3 samples
    (first, *others), source = parts_for(saved, num_ranks)
    assert source == 0
    assert others == [None] * (num_ranks - 1)
    assert first is not None
    assert first.pending == Pending()
    states = [part.tensors["model/weight"] for part in saved.parts]
    mean = (states[0] * 1 + states[1] * 2 + states[2] * 3) / 6
    torch.testing.assert_close(first.tensors["model/weight"], mean)
    assert first.tensors["model/num_batches_tracked"] == 2**53 + 1
