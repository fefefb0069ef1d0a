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
from pathlib import Path
from typing import Any

import typer.main

from convoy.cli.app import app
from convoy.errors import nearest

ROOT = Path(__file__).resolve().parents[1]
SHELLS = ("", "sh", "bash", "shell", "console")

_FENCE = re.compile(r" *(`{3,}|~{3,})[ \t]*(\w*)")
_CODE_SPAN = re.compile(r"(`+)(.+?)\1")
_LINKS = (
    re.compile(r"\]\(<?([^)\s>]+)>?(?:\s+[\"'][^)]*)?\)"),  # [text](target "title"), and images
    re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)"),  # [label]: target
    re.compile(r"<(?:img|a)\b[^>]*?\b(?:src|href)=[\"']([^\"']+)"),
)
_RULE = re.compile(r"^([\w.-]+(?:[ \t]+[\w.-]+)*)[ \t]*:(?!=)", re.MULTILINE)
_COMMENT = re.compile(r"(?:^|\s)#.*")
_BETWEEN_COMMANDS = re.compile(r"&&|\|\||[|;>]")

Fault = tuple[int, str]
"""A line, and what is wrong there."""


def main(arguments: Sequence[str]) -> int:
    """Check the files named, or all; the exit status."""
    paths = [Path(name).resolve() for name in arguments] or markdown_below(ROOT)
    faults = 0
    for path in paths:
        for line, text in check_file(path, ROOT):
            faults += 1
            print(f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{line}: {text}")
    print(f"{len(paths)} documents, {faults} faults", file=sys.stderr)
    return 1 if faults else 0


def markdown_below(root: Path) -> list[Path]:
    """Every *.md below `root` that git tracks, or would track if it were added."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.md"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return [root / name for name in sorted(set(listed.split("\0"))) if (root / name).is_file()]


def check_file(path: Path, root: Path) -> Iterator[Fault]:
    """Every fault of the document at `path`; its links may lead anywhere below `root`."""
    targets = make_targets(root / "Makefile")
    fence, language, first, code = "", "", 0, list[str]()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        marks = _FENCE.match(line)
        if fence and marks and marks[1].startswith(fence) and not line.strip(" `~"):
            yield from check_code(language, code, first, targets)
            fence = ""
        elif fence:
            code.append(line)
        elif marks:
            fence, language, first, code = marks[1], marks[2].lower(), number + 1, []
        else:
            yield from ((number, text) for text in check_prose(line, path, root, targets))
    if fence:
        yield first - 1, "this fenced block does not end"


def make_targets(makefile: Path) -> set[str]:
    """The names that a Makefile has rules for."""
    text = makefile.read_text(encoding="utf-8") if makefile.is_file() else ""
    return {name for rule in _RULE.findall(text) for name in rule.split()}


def check_prose(line: str, path: Path, root: Path, targets: set[str]) -> Iterator[str]:
    """What is wrong with the links, images and `make` spans in a line outside fenced blocks."""
    for _, span in _CODE_SPAN.findall(line):
        if span.startswith("make "):
            yield from check_make(span.split()[1:], targets)
    for pattern in _LINKS:
        for target in pattern.findall(_CODE_SPAN.sub("", line)):
            name = target.partition("#")[0]
            if not name or re.match(r"[a-z][a-z0-9+.-]*:|//", target, re.IGNORECASE):
                continue  # within this document, or on the web
            linked = (path.parent / name).resolve()
            if not linked.is_relative_to(root.resolve()):
                yield f"link to {name}: it lies outside the repository"
            elif not linked.exists():
                yield f"link to {name}: no such file"


def check_code(language: str, code: list[str], first: int, targets: set[str]) -> Iterator[Fault]:
    """The faults of a fenced block whose code begins in line `first`."""
    if language in ("python", "py"):
        try:
            compile(textwrap.dedent("\n".join(code)), "<block>", "exec")
        except SyntaxError as error:
            yield first + (error.lineno or 1) - 1, f"this Python does not compile: {error.msg}"
    elif language in SHELLS:
        lines = iter(enumerate(code, start=first))
        for number, line in lines:
            while line.endswith("\\"):
                line = line[:-1] + next(lines, (0, ""))[1]
            if language == "console" and not line.strip().startswith("$ "):
                continue  # what the command printed
            line = _COMMENT.sub("", line.strip().removeprefix("$ "))
            for command in _BETWEEN_COMMANDS.split(line):
                yield from ((number, text) for text in check_command(command, targets))


def check_command(command: str, targets: set[str]) -> Iterator[str]:
    """What is wrong with one command, if it is Convoy's or make's."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quotation over several lines
        return
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
    called = "convoy"
    while words and not words[0].startswith("-") and hasattr(command, "commands"):
        if words[0] not in command.commands:
            yield f"{called} {words[0]}: no such verb{_offer(words[0], command.commands)}"
            return
        called, command, words = f"{called} {words[0]}", command.commands[words[0]], words[1:]
    options = {name: option for option in command.params for name in option.opts}
    negatives = {name for option in command.params for name in option.secondary_opts}
    known = {*options, *negatives, "--help", "-h"}
    waiting = ""  # the option whose value comes next
    for word in words:
        name, equals, _ = word.partition("=")
        if word == "--":  # what follows is another command
            yield from check_command(shlex.join(words[words.index(word) + 1 :]), set())
            break
        if waiting:
            waiting = ""
        elif name.startswith("-") and name not in known:
            yield f"{called} {name}: no such option{_offer(name, known)}"
        elif name in options and name.startswith("-") and not equals:
            waiting = "" if options[name].is_flag else name
    if waiting:
        yield f"{called} {waiting}: its value is missing"


def _offer(name: str, known: Iterable[str]) -> str:
    close = nearest(name, known, count=1)
    return f"; nearest: {close[0]}" if close else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
