from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from convoy.cli.console import complain, console, plain, print_json, stdout_for
from convoy.errors import ConvoyError


def test_people_read_stdout_unless_that_is_for_json(capsys: pytest.CaptureFixture[str]) -> None:
    console(as_json=False).print("one")
    console(as_json=True).print("two")
    written = capsys.readouterr()
    assert (written.out, written.err) == ("one\n", "two\n")


def test_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"folder": Path("runs/x"), "share": [0.5, None], "name": "[bold]"}
    print_json(document)
    written = capsys.readouterr()
    assert json.loads(written.out) == document | {"folder": "runs/x"}
    assert written.out.endswith("}\n")
    assert written.err == ""


def test_what_others_print_keeps_clear_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    for as_json in (True, False):
        with stdout_for(as_json=as_json):
            print(as_json)
    print("after")
    written = capsys.readouterr()
    assert (written.out, written.err) == ("False\nafter\n", "True\n")


def test_errors_go_to_stderr_word_for_word(capsys: pytest.CaptureFixture[str]) -> None:
    said = f"[bold]no[/] such thing: {'x' * 200} [/nothing] :smile:"
    complain(ConvoyError(said))
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err == f"error: {said}\n"


@pytest.mark.parametrize("text", ["plain", "[bold]x[/]", "[/]", "a\\", "\\[red]", "[1, 2]"])
def test_plain_text_is_printed_as_it_is(text: str) -> None:
    output = StringIO()
    Console(file=output, width=100, highlight=False, emoji=False).print(
        f"[bold]{plain(text)}[/] end"
    )
    assert output.getvalue() == f"{text} end\n"
