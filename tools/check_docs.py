"""Whether what the documentation names is there: linked files, commands, make targets, code.

    python tools/check_docs.py              # every *.md that git tracks or would track
    python tools/check_docs.py README.md    # these

Prints one line per fault, `file:line: what is wrong`, and exits with 1 if there is any.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.main

from convoy.cli import app
from convoy.errors import nearest

ROOT = Path(__file__).resolve().parents[1]
SHELLS = frozenset({"", "sh", "bash", "shell", "console"})

_FENCE = re.compile(r" *(`{3,}|~{3,})[ \t]*(\w*)")
_CODE_SPAN = re.compile(r"(`+)(.+?)\1")
_LINKS = (
    re.compile(r"\]\(<?([^)\s>]+)>?(?:\s+[\"'][^)]*)?\)"),  # [text](target "title"), and images
    re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)"),  # [label]: target
    re.compile(r"<(?:img|a)\b[^>]*?\b(?:src|href)=[\"']([^\"']+)"),
)
_TARGETS = re.compile(r"^([\w.-]+(?:[ \t]+[\w.-]+)*)[ \t]*:(?!=)", re.MULTILINE)
_SEPARATORS = frozenset({";", "&", "&&", "|", "||", "|&", "(", ")", ">", ">>", "<"})


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that a document names and that is not there."""

    path: Path
    line: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: the line of its first line of code, its language, and the code."""

    line: int
    language: str
    code: str


def main(arguments: Sequence[str]) -> int:
    """Check the files named, or all; the exit status."""
    paths = [Path(name).resolve() for name in arguments] or tracked_markdown(ROOT)
    faults = [fault for path in paths for fault in check_file(path, ROOT)]
    for fault in faults:
        place = fault.path.relative_to(ROOT) if fault.path.is_relative_to(ROOT) else fault.path
        print(f"{place}:{fault.line}: {fault.text}")
    print(f"{len(paths)} documents, {len(faults)} faults", file=sys.stderr)
    return 1 if faults else 0


def tracked_markdown(root: Path) -> list[Path]:
    """Every *.md below `root` that git tracks, or would track if it were added."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.md"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    found = (root / name for name in sorted(set(listed.split("\0"))) if name)
    return [path for path in found if path.is_file()]


def check_file(path: Path, root: Path) -> Iterator[Fault]:
    """Every fault of the document at `path`; links may lead anywhere below `root`."""
    makefile = root / "Makefile"
    targets = make_targets(makefile.read_text(encoding="utf-8")) if makefile.is_file() else set()
    prose, blocks = split(path.read_text(encoding="utf-8"))
    for number, line in prose:
        for text in check_links(_CODE_SPAN.sub("", line), path, root):
            yield Fault(path=path, line=number, text=text)
        for _, span in _CODE_SPAN.findall(line):
            if span.startswith("make "):
                for text in check_make(span.split()[1:], targets):
                    yield Fault(path=path, line=number, text=text)
    for block in blocks:
        for number, text in check_block(block, targets):
            yield Fault(path=path, line=number, text=text)


def split(text: str) -> tuple[list[tuple[int, str]], list[Block]]:
    """The numbered lines outside fenced blocks, and the blocks."""
    prose: list[tuple[int, str]] = []
    blocks: list[Block] = []
    fence, language, first, code = "", "", 0, list[str]()
    for number, line in enumerate(text.splitlines(), start=1):
        marks = _FENCE.match(line)
        if fence and marks and marks[1].startswith(fence) and not line.strip(" `~"):
            blocks.append(Block(line=first, language=language, code="\n".join(code)))
            fence, code = "", []
        elif fence:
            code.append(line)
        elif marks:
            fence, language, first = marks[1], marks[2].lower(), number + 1
        else:
            prose.append((number, line))
    if fence:
        blocks.append(Block(line=first, language=language, code="\n".join(code)))
    return prose, blocks


def make_targets(makefile: str) -> set[str]:
    """The names that a Makefile has rules for."""
    return {name for rule in _TARGETS.findall(makefile) for name in rule.split()}


def check_links(line: str, path: Path, root: Path) -> Iterator[str]:
    """What is wrong with the relative links and images in `line` of the document at `path`."""
    for target in (found for pattern in _LINKS for found in pattern.findall(line)):
        name = target.partition("#")[0]
        if not name or re.match(r"[a-z][a-z0-9+.-]*:|//", target, re.IGNORECASE):
            continue  # within this document, or on the web
        linked = (path.parent / name).resolve()
        if not linked.is_relative_to(root.resolve()):
            yield f"link to {name}: it lies outside the repository"
        elif not linked.exists():
            yield f"link to {name}: no such file"


def check_block(block: Block, targets: set[str]) -> Iterator[tuple[int, str]]:
    """The faults of a fenced block, with their lines."""
    if block.language in ("python", "py"):
        try:
            compile(textwrap.dedent(block.code), "<block>", "exec")
        except SyntaxError as error:
            yield block.line + (error.lineno or 1) - 1, f"this Python has a {error.msg}"
    elif block.language in SHELLS:
        for number, words in commands(block):
            for text in check_command(words, targets):
                yield number, text


def commands(block: Block) -> Iterator[tuple[int, list[str]]]:
    """The simple commands of a shell block as lists of words, with their lines."""
    lines = iter(enumerate(block.code.splitlines(), start=block.line))
    for number, line in lines:
        while line.endswith("\\"):
            line = line[:-1] + next(lines, (0, ""))[1]
        words = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        try:
            for word in words:
                if word not in _SEPARATORS:
                    command.append(word)
                    continue
                yield number, command
                command = []
        except ValueError:  # an open quotation: no shell command, or one over several lines
            continue
        yield number, command


def check_command(words: Sequence[str], targets: set[str]) -> Iterator[str]:
    """What is wrong with one command, if it is Convoy's or make's."""
    words = [*words]
    while words and re.match(r"\w+=", words[0]):  # variables for this command only
        del words[0]
    if words and Path(words[0]).name == "convoy":
        yield from check_convoy(words[1:])
    elif "-m" in words and words[words.index("-m") + 1 :][:1] == ["convoy"]:
        yield from check_convoy(words[words.index("-m") + 2 :])
    elif words[:1] == ["make"]:
        yield from check_make(words[1:], targets)


def check_make(words: Iterable[str], targets: set[str]) -> Iterator[str]:
    """The targets among `words`, what follows `make`, that there are no rules for."""
    for word in words:
        if not word.startswith("-") and "=" not in word and word not in targets:
            yield f"make {word}: no such target{_offer(word, targets)}"


def check_convoy(words: Sequence[str]) -> Iterator[str]:
    """The verb and options among `words`, what follows `convoy`, that do not exist."""
    command: Any = typer.main.get_command(app)
    verb = next((word for word in words if not word.startswith("-")), None)
    if verb is not None:
        if verb not in command.commands:
            yield f"convoy {verb}: no such verb{_offer(verb, command.commands)}"
            return
        command = command.commands[verb]
    called = f"convoy {verb}" if verb else "convoy"
    options = {name: option for option in command.params for name in option.opts}
    known = {*options, "--help", "-h"}
    value_of = ""
    for word in words:
        name, equals, _ = word.partition("=")
        if value_of:
            value_of = ""
        elif name.startswith("-") and name not in known:
            yield f"{called} {name}: no such option{_offer(name, known)}"
        elif name in options and not options[name].is_flag and not equals:
            value_of = name
    if value_of:
        yield f"{called} {value_of}: a value is missing"


def _offer(name: str, known: Iterable[str]) -> str:
    close = nearest(name, known, count=1)
    return f"; nearest: {close[0]}" if close else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
