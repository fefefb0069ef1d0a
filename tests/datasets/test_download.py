from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from convoy.datasets.download import OFFICIAL, Sources, check_md5, fetch
from convoy.errors import DataError


def _fetch(urls: list[str], folder: Path, sources: Sources = OFFICIAL) -> None:
    def install(file: Path, scratch: Path) -> None:
        (scratch / "half").write_bytes(b"half")
        if file.read_bytes() == b"bad":
            raise DataError("it is bad")
        file.replace(folder / "got")

    fetch(urls, folder, install, sources=sources, missing="It is missing.", by_hand="Do it.")


def test_the_official_addresses_and_sums() -> None:
    assert OFFICIAL.cifar10 == ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",)
    assert OFFICIAL.cifar10_md5 == "c32a1d4ab5d03f1284b67883e8d87530"
    assert all(url.startswith("https://") and url.endswith("/") for url in OFFICIAL.mnist)
    assert OFFICIAL.patience_s < 15


def test_a_large_file_arrives_whole_and_says_so(
    tmp_path: Path, web: Any, caplog: pytest.LogCaptureFixture
) -> None:
    content = bytes(range(256)) * 4096
    web.files["/big"] = content
    folder = tmp_path / "a" / "b"
    with caplog.at_level(logging.WARNING):
        _fetch([f"{web.url}/big"], folder)
    assert (folder / "got").read_bytes() == content
    assert [path.name for path in folder.iterdir()] == ["got"]
    assert f"downloading {web.url}/big to {folder}" in caplog.text


def test_every_address_is_tried_and_told(tmp_path: Path, web: Any, refusing: str) -> None:
    url = web.url
    web.files["/bad"] = b"bad"
    web.files["/long?cut"] = bytes(1000)
    with pytest.raises(DataError) as caught:
        _fetch([f"{url}/absent", f"{url}/bad", f"{url}/long?cut", refusing, "nonsense"], tmp_path)
    first, second, *tried, last = str(caught.value).split("\n")
    assert (first, second, last) == ("It is missing.", "Tried:", "Do it.")
    assert len(tried) == 5
    assert "404" in tried[0]
    assert tried[1] == f"  {url}/bad: it is bad"
    assert "500 more expected" in tried[2]
    assert "refused" in tried[3]
    assert "nonsense" in tried[4]
    assert list(tmp_path.iterdir()) == []


def test_a_host_that_does_not_answer_is_given_up(tmp_path: Path, silent: str) -> None:
    start = time.perf_counter()
    with pytest.raises(DataError, match=r"no answer within 0\.2 s|timed out"):
        _fetch([silent, silent], tmp_path, Sources(patience_s=0.4, stall_s=0.2))
    assert time.perf_counter() - start < 5
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, web: Any) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"Not a directory|File exists"):
        _fetch([f"{web.url}/x"], tmp_path / "file" / "below")


def test_check_md5_names_both_sums(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    check_md5(path, "900150983cd24fb0d6963f7d28e17f72", "it")
    with pytest.raises(DataError, match=r"MD5 of it is 9001.*, expected ffff \(3 bytes came\)"):
        check_md5(path, "ffff", "it")
