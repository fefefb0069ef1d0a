from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convoy.datasets import DataSet, lazy, open_dataset
from convoy.errors import DataError, UsageError

Write = Callable[..., Path]
SPLIT = {"train/cat": 6, "train/dog": 4, "test/cat": 2, "test/dog": 3}


def _pixels(data: DataSet, split: str = "train") -> torch.Tensor:
    part = getattr(data, split)
    images, _ = part.batch(torch.arange(len(part)))
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.mean, data.std))
    return ((images * std + mean) * 255).round().to(torch.int64)


def test_train_and_test_as_they_are(tmp_path: Path, picture_folder: Write) -> None:
    root = picture_folder(tmp_path / "pets", SPLIT)
    data = open_dataset(f"folder:{root}")
    assert data.name == f"folder:{root}"
    assert data.train.class_names == ("cat", "dog")
    assert data.train.image_shape == (3, 6, 8)
    assert data.train.labels().tolist() == [0] * 6 + [1] * 4
    assert data.test.labels().tolist() == [0] * 2 + [1] * 3
    # The writer's colours: 40 per folder in red, the number in green.
    assert _pixels(data)[:, :2, 0, 0].tolist() == [[0, n] for n in range(6)] + [
        [40, n] for n in range(4)
    ]
    images, labels = data.test.batch(torch.tensor([4, 0]))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert labels.tolist() == [1, 0]


def test_mean_and_std_are_those_of_the_training_pictures(
    tmp_path: Path, picture_folder: Write
) -> None:
    data = open_dataset(f"folder:{picture_folder(tmp_path, SPLIT)}")
    images, _ = data.train.batch(torch.arange(10))
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        images.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0
    )


def test_one_folder_is_split_by_seed_class_by_class(tmp_path: Path, picture_folder: Write) -> None:
    root = picture_folder(tmp_path, {"ant": 10, "bee": 20, "cow": 5})
    held_back = {}
    for seed in (0, 0, 1):
        data = open_dataset(f"folder:{root}", seed=seed)
        assert (len(data.train), len(data.test)) == (28, 7)
        assert data.test.labels().bincount().tolist() == [2, 4, 1]
        numbers = _pixels(data, "test")[:, :2, 0, 0].tolist()
        both = numbers + _pixels(data, "train")[:, :2, 0, 0].tolist()
        assert len({tuple(pair) for pair in both}) == 35  # every picture once
        assert held_back.setdefault(seed, numbers) == numbers
    assert held_back[0] != held_back[1]
    digest = hashlib.sha256(str(held_back[0]).encode()).hexdigest()
    assert digest == "388c4a5ef8778f76f041d1ddf3392f245e35c28e72df0d55b81dea62fdb2cc98"


def test_pictures_deeper_down_and_other_files(tmp_path: Path, picture_folder: Write) -> None:
    root = picture_folder(tmp_path, {"a/x/y": 3, "b": 3})
    (root / "b" / "notes.txt").write_text("no picture")
    (root / "b" / ".hidden.png").write_text("no picture")
    (root / ".git").mkdir()
    data = open_dataset(f"folder:{root}")
    assert len(data.train) + len(data.test) == 6
    assert data.train.class_names == ("a", "b")


def test_a_class_may_be_called_train(tmp_path: Path, picture_folder: Write) -> None:
    root = picture_folder(tmp_path, {"car": 5, "train": 5})
    assert open_dataset(f"folder:{root}").train.class_names == ("car", "train")


def test_a_class_without_test_pictures_keeps_its_label(
    tmp_path: Path, picture_folder: Write
) -> None:
    root = picture_folder(tmp_path, {"train/a": 2, "train/b": 2, "test/b": 2})
    assert open_dataset(f"folder:{root}").test.labels().tolist() == [1, 1]


def test_the_shape_asked_for(tmp_path: Path, picture_folder: Write) -> None:
    root = picture_folder(tmp_path, SPLIT)
    source = np.random.RandomState(0).randint(0, 256, (6, 8, 3)).astype(np.uint8)
    Image.fromarray(source).save(root / "train" / "cat" / "000.png")
    data = open_dataset(f"folder:{root}", image_shape=(1, 5, 4))
    assert data.train.image_shape == (1, 5, 4)
    expected = Image.fromarray(source).convert("L").resize((4, 5), Image.Resampling.BILINEAR)
    assert _pixels(data)[0, 0].tolist() == np.asarray(expected).tolist()
    with pytest.raises(UsageError, match=r"2x5x4: an image shape is CxHxW"):
        open_dataset(f"folder:{root}", image_shape=(2, 5, 4))


def test_every_kind_of_picture_becomes_the_first_ones(tmp_path: Path) -> None:
    grey = np.arange(48).reshape(6, 8).astype(np.uint8)
    kinds = {
        "a.png": Image.fromarray(grey),
        "b.png": Image.fromarray(grey.astype(np.uint16) * 256),  # 16 bits, scaled not clipped
        "c.png": Image.merge("RGB", [Image.fromarray(grey)] * 3),
        "d.png": Image.merge("LA", [Image.fromarray(grey)] * 2),
        "e.GIF": Image.fromarray(grey),
        "f.png": Image.fromarray(grey).convert("P"),
    }
    for split in ("train", "test"):
        (tmp_path / split / "x").mkdir(parents=True)
        for name, picture in kinds.items():
            picture.save(tmp_path / split / "x" / name)
    data = open_dataset(f"folder:{tmp_path}")
    assert data.train.image_shape == (1, 6, 8)
    for pixels in _pixels(data):
        assert pixels[0].tolist() == grey.tolist()


def test_a_palette_with_transparency(tmp_path: Path, picture_folder: Write) -> None:
    root = picture_folder(tmp_path, {"a": 5})
    palette = Image.new("P", (8, 6), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.save(root / "a" / "zzz.png", transparency=b"\xff\x80")
    data = open_dataset(f"folder:{root}")
    both = torch.cat((_pixels(data, "train"), _pixels(data, "test")))
    assert [200, 100, 50] in both[:, :, 0, 0].tolist()


def test_large_jpegs_are_read_at_the_size_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    ramp = np.linspace(0, 255, 640).astype(np.uint8)[None, :, None].repeat(480, 0).repeat(3, 2)
    for number in range(2):
        Image.fromarray(ramp).save(tmp_path / "a" / f"{number}.jpg", quality=95)
    data = open_dataset(f"folder:{tmp_path}", image_shape=(3, 12, 16))
    row = _pixels(data)[0, 0, 6].float()
    torch.testing.assert_close(row, torch.linspace(8, 247, 16), atol=3, rtol=0)


def test_threads_change_nothing_and_the_split_pickles(
    tmp_path: Path, picture_folder: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = picture_folder(tmp_path, {"train/a": 40, "test/a": 2})
    order = torch.arange(39, -1, -1)
    results = []
    for cpus in (1, 4):
        monkeypatch.setattr(lazy, "_usable_cpus", lambda cpus=cpus: cpus)
        data = pickle.loads(pickle.dumps(open_dataset(f"folder:{root}")))
        results.append(data.train.batch(order)[0])
    assert torch.equal(*results)
    assert data.train.batch(order[:0])[0].shape == (0, 3, 6, 8)


@pytest.mark.parametrize("fault", ["garbage", "cut", "gone"])
def test_a_broken_picture_is_named(tmp_path: Path, picture_folder: Write, fault: str) -> None:
    root = picture_folder(tmp_path, SPLIT, size=(64, 64))
    data = open_dataset(f"folder:{root}")
    broken = root / "test" / "dog" / "001.png"
    if fault == "garbage":
        broken.write_bytes(b"this is no picture")
    elif fault == "cut":
        broken.write_bytes(broken.read_bytes()[:-40])
    else:
        broken.unlink()
    data.test.batch(torch.tensor([0, 1, 2, 4]))
    with pytest.raises(DataError, match="cannot read the picture") as caught:
        data.test.batch(torch.arange(5))
    assert str(broken) in str(caught.value)


def test_a_broken_first_picture_is_named_at_once(tmp_path: Path, picture_folder: Write) -> None:
    root = picture_folder(tmp_path, SPLIT)
    (root / "train" / "cat" / "000.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"000\.png"):
        open_dataset(f"folder:{root}")


def test_pixels_of_unknown_range_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(2):
        path = tmp_path / "a" / f"{number}.tif"
        Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(path)
    with pytest.raises(DataError, match=r"\.tif: ValueError: its pixels are 32-bit floats"):
        open_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "is empty; expected one folder of pictures per class"),
        ({".": 3}, "has pictures but no classes; put them into one folder per class"),
        ({"a": 3, "b": 0}, "b is empty: expected pictures .* of the class 'b'"),
        ({"a": 1, "b": 1}, "too few pictures to hold any back"),
        ({"train/a": 2}, "has train/ but no test/"),
        ({"test/a": 2, "val/a": 1}, "has test/ but no train/"),
        ({"train/a": 2, "test": 2}, "has train/ but no test/"),
        ({"train/a": 2, "test/a": 0}, "test is empty: its classes hold no pictures"),
        (
            {"train/a": 2, "train/b": 1, "test/c": 1, "test/b": 1},
            "classes that are not in training: c; expected among a, b",
        ),
    ],
)
def test_folders_that_are_not_as_they_should_be(
    tmp_path: Path, picture_folder: Write, counts: dict[str, int], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(f"folder:{picture_folder(tmp_path, counts)}")
    assert str(tmp_path) in str(caught.value)


def test_paths_that_are_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="absent does not exist"):
        open_dataset(f"folder:{tmp_path / 'absent'}")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file is a file"):
        open_dataset(f"folder:{tmp_path / 'file'}")
    with pytest.raises(UsageError, match="expected folder:PATH"):
        open_dataset("folder:")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=str(tmp_path / "pets")):
        open_dataset("folder:~/pets")


def test_a_relative_path_is_of_the_working_directory(
    tmp_path: Path, picture_folder: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture_folder(tmp_path / "pets", SPLIT)
    monkeypatch.chdir(tmp_path)
    data = open_dataset("folder:pets")
    monkeypatch.chdir("/")  # found once, it stays found
    assert len(data.test.labels()) == 5
