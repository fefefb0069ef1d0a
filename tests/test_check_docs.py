"""The checker of the documentation: what it finds, what it lets pass, and what it says."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = """
BIN := .venv/bin
.PHONY: test lint
$(BIN)/ready: setup.toml
\ttouch $@
test lint: $(BIN)/ready
\techo a: b
"""


def _load() -> ModuleType:
    """tools/ is no package, so its scripts are loaded from their files."""
    spec = importlib.util.spec_from_file_location("check_docs", ROOT / "tools" / "check_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_docs = _load()
Check = Callable[[str], list[tuple[int, str]]]


@pytest.fixture
def faults_of(tmp_path: Path) -> Check:
    (tmp_path / "Makefile").write_text(MAKEFILE, encoding="utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "other.md").write_text("# Other\n", encoding="utf-8")

    def check(text: str) -> list[tuple[int, str]]:
        document = tmp_path / "docs" / "page.md"
        document.write_text(text, encoding="utf-8")
        return list(check_docs.check_file(document, tmp_path))

    return check


def shell(*lines: str, language: str = "sh") -> str:
    return "\n".join([f"```{language}", *lines, "```"])


@pytest.mark.parametrize(
    "text",
    [
        "[o](other.md) [o](other.md#part) [up](../Makefile 'a title') ![p](<other.md>)",
        "[web](https://example.org/x.md) <a href='mailto:a@example.org'> [here](#here)",
        "[label]: other.md",
        "`[not](a-link.md)` and ``[nor](`this`.md)``",
        "a `make` and `make test -j2 PYTHON=python3.11`; make sure in prose",
        shell("convoy train --network lenet --workers=2 -v", "convoy --version", "convoy -h"),
        shell("convoy evaluate runs/a --json > result.json", "convoy doctor # --no; make fly"),
        shell("A=1 .venv/bin/convoy train \\", "  --epochs 1 | tee log && make test"),
        shell("torchrun --nproc-per-node=2 -m convoy train --data mnist"),
        shell("convoy train --augment --none"),  # a value may begin with a hyphen
        shell("convoy fly", language="text"),
        shell("$ convoy doctor", "convoy cannot do that", language="console"),
        "- in a list\n\n  ```python\n  def f():\n      return 1\n  ```",
        "~~~~python\nx = '''\n~~~\n'''\n~~~~",
    ],
)
def test_nothing_to_find(faults_of: Check, text: str) -> None:
    assert faults_of(text) == []


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("one\n\n[o](othr.md)", 3, "link to othr.md: no such file"),
        ("![p](pictures/p.png)", 1, "link to pictures/p.png: no such file"),
        ('<img src="p.png">', 1, "link to p.png: no such file"),
        ("[label]: gone.md", 1, "link to gone.md: no such file"),
        ("[o](../../out.md)", 1, "link to ../../out.md: it lies outside the repository"),
        ("run `make tests`", 1, "make tests: no such target; nearest: test"),
        (shell("cd x && make fly"), 2, "make fly: no such target"),
        (shell("convoy trian"), 2, "convoy trian: no such verb; nearest: train"),
        (shell("", "$ convoy train --epoch 1"), 3, "convoy train --epoch: no such option"),
        (shell("convoy train \\", "  --wrokers 2"), 2, "--wrokers: no such option; nearest: --wo"),
        (shell("convoy train --lr=1 --steps"), 2, "convoy train --steps: its value is missing"),
        (shell("convoy --nothing"), 2, "convoy --nothing: no such option"),
        (shell("python -m convoy doctor -x"), 2, "convoy doctor -x: no such option"),
        ("```\nconvoy fly\n```", 2, "convoy fly: no such verb"),
        ("```python\nx = 1\ny = = 2\n```", 3, "this Python does not compile: invalid syntax"),
        ("text\n```sh\nls\n", 2, "this fenced block does not end"),
    ],
)
def test_a_fault(faults_of: Check, text: str, line: int, says: str) -> None:
    (fault,) = faults_of(text)
    assert fault[0] == line
    assert says in fault[1]


def test_only_rules_are_targets(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(MAKEFILE, encoding="utf-8")
    assert check_docs.make_targets(tmp_path / "Makefile") == {".PHONY", "test", "lint"}
    assert check_docs.make_targets(tmp_path / "none") == set()


def test_the_exit_status_and_the_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.md"
    bad.write_text("\n[o](gone.md)\n", encoding="utf-8")
    assert check_docs.main([str(bad)]) == 1
    assert capsys.readouterr().out == f"{bad}:2: link to gone.md: it lies outside the repository\n"
    bad.write_text("fine\n", encoding="utf-8")
    assert check_docs.main([str(bad)]) == 0
    assert capsys.readouterr().out == ""


def test_documents_that_git_ignores_are_left_out(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    for name in ("new.md", "ignored.md", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / ".gitignore").write_text("ignored.md\n", encoding="utf-8")
    assert check_docs.markdown_below(tmp_path) == [tmp_path / "new.md"]


def test_every_direct_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(chain(project["dependencies"], *project["optional-dependencies"].values()))
    explained = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    for requirement in wanted:
        name = requirement.partition(">")[0].partition("[")[0].strip()
        if name == project["name"]:  # an extra that has another one
            continue
        assert f"| `{name}` |" in explained, f"docs/dependencies.md has no row for {name}"


def test_it_runs_as_a_script() -> None:
    script = ROOT / "tools" / "check_docs.py"
    done = subprocess.run(
        [sys.executable, str(script), str(ROOT / "CHANGELOG.md")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
