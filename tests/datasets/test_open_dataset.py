from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from convoy.datasets import default_dir, names, open_dataset
from convoy.errors import UnknownNameError, UsageError


def test_names() -> None:
    assert names() == ["cifar10", "digits", "mnist"]


@pytest.mark.parametrize(
    ("spec", "offer"),
    [
        ("minst", "mnist"),
        ("cifar", "cifar10"),
        ("MNIST", "mnist"),
        ("digit", "digits"),
        ("", "digits"),
        ("folder", "folder:PATH"),
        ("foldr:/x", "folder:PATH"),
    ],
)
def test_an_unknown_name_offers_the_nearest(spec: str, offer: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        open_dataset(spec)
    message = str(caught.value)
    assert f"unknown data set {spec!r}" in message
    assert offer in message
    assert "synthetic:CxHxW:classes" in message
    assert "package.module:function" in message


def test_a_shape_that_the_images_do_not_have() -> None:
    assert open_dataset("digits", image_shape=(1, 8, 8)).train.image_shape == (1, 8, 8)
    with pytest.raises(UsageError, match="'digits' has images of 1x8x8, not 1x28x28"):
        open_dataset("digits", image_shape=(1, 28, 28))


def test_where_files_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_mnist: Callable[..., None]
) -> None:
    monkeypatch.delenv("CONVOY_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_dir() == tmp_path / "cache" / "convoy"
    monkeypatch.setenv("CONVOY_DATA", "")
    assert default_dir() == tmp_path / "cache" / "convoy"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CONVOY_DATA", "~/told")
    assert default_dir() == tmp_path / "told"
    write_mnist(tmp_path / "told")
    assert len(open_dataset("mnist").test) == 20


def test_what_is_said_wins_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_mnist: Callable[..., None]
) -> None:
    monkeypatch.setenv("CONVOY_DATA", str(tmp_path / "absent"))
    write_mnist(tmp_path / "said")
    assert len(open_dataset("mnist", data_dir=tmp_path / "said").test) == 20
    assert not (tmp_path / "absent").exists()
