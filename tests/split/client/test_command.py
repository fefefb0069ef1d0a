"""`convoy split run`: what an edge machine's user sees."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .. import toy

BARE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "ray", "onnx", "matplotlib", "sklearn", "zmq"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
from convoy.cli import main
sys.argv = ["convoy", *sys.argv[1:]]
main()
"""
"""A machine without what trains."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "exported"
    toy.export(folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, picture in enumerate(toy.pictures(5)):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


def bare(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BARE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_a_folder_on_a_machine_without_torch(
    exported: Path, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "2.png").write_bytes(b"no picture")
    summary = tmp_path / "summary.json"
    ran = bare(*("split", "run", exported, "--source", f"folder:{pictures}", "--summary", summary))
    assert ran.returncode == 0, ran.stderr
    rows = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [row["index"] for row in rows] == list(range(5))
    assert [row["name"] for row in rows] == [f"{n}.png" for n in range(5)]
    expected = toy.logits(toy.pictures(5))
    for row, logits in zip(rows, expected, strict=True):
        if row["index"] == 2:
            assert "2.png is not a picture" in row["error"]
            assert (row["label"], row["where"]) == (None, None)
            continue
        assert row["label"] == int(logits.argmax())
        assert row["class"] == toy.CLASSES[row["label"]]
        assert row["score"] == pytest.approx(logits.max(), abs=1e-4)
        assert row["where"] == "edge"
        assert row["latency_ms"] > 0
    found = json.loads(summary.read_text())
    assert (found["images"], found["errors"], found["computed"]) == (5, 1, {"edge": 4})
    assert "5 images done" in ran.stderr
    assert "1 errors" in ran.stderr


def test_standard_input_and_a_file_of_results(exported: Path, pictures: Path) -> None:
    out = pictures / "out.jsonl"
    paths = "\n".join(str(pictures / f"{n}.png") for n in (3, 1))
    ran = subprocess.run(
        [sys.executable, "-m", "convoy", "split", "run", str(exported), "--out", str(out)],
        input=paths,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ""
    labels = [json.loads(line)["label"] for line in out.read_text().splitlines()]
    assert labels == np.argmax(toy.logits(toy.pictures(5)), 1)[[3, 1]].tolist()


def test_what_came_before_a_source_broke_is_summed_up(
    exported: Path, pictures: Path, tmp_path: Path
) -> None:
    """Standard input: two JPEGs, and a third that never ends."""
    jpeg = io.BytesIO()
    Image.open(pictures / "0.png").save(jpeg, "JPEG")
    stream = 2 * jpeg.getvalue() + b"\xff\xd8" + bytes((64 << 20) + 1)
    summary = tmp_path / "summary.json"
    command = [sys.executable, "-m", "convoy", "split", "run", str(exported)]
    command += ["--summary", str(summary), "--batch-size", "1"]
    ran = subprocess.run(command, input=stream, capture_output=True, timeout=100, check=False)
    assert ran.returncode == 1
    assert b"a picture of more than" in ran.stderr
    assert json.loads(summary.read_text())["images"] == len(ran.stdout.splitlines()) == 2


def test_earlier_results_outlive_a_client_that_is_refused(exported: Path, pictures: Path) -> None:
    out, summary = pictures / "out.jsonl", pictures / "summary.json"
    out.write_text("of yesterday")
    ran = bare(
        *("split", "run", exported, "--source", f"folder:{pictures}", "--way", "pool2/uint8"),
        *("--out", out, "--summary", summary),
    )
    assert ran.returncode == 2
    assert (out.read_text(), summary.exists()) == ("of yesterday", False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--source", "folder:/nowhere"), "there is no such folder"),
        (("--source", "folder:.", "--way", "pool2/uint8"), "unknown way 'pool2/uint8'"),
        (("--source", "folder:.", "--server", "cloud:80"), "expected grpcs://HOST:PORT"),
        (("--source", "folder:.", "--token-file", "none"), "cannot read the token in none"),
        (("--source", "folder:.", "--objective", "speed"), "expected one of latency"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(
    exported: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(pictures)
    ran = bare("split", "run", exported, *arguments)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert says in " ".join(ran.stderr.split())
    assert "Traceback" not in ran.stderr


def test_what_trains_is_said_to_be_missing(exported: Path) -> None:
    ran = bare("split", "export", exported)
    assert ran.returncode == 2
    assert "lacks torch: pip install 'convoy-cnn[train]'" in " ".join(ran.stderr.split())
