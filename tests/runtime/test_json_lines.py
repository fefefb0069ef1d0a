from __future__ import annotations

from pathlib import Path

import pytest

from convoy.errors import DataError
from convoy.runtime.json_lines import drop_unfinished, read_lines


@pytest.mark.parametrize("end", ["", "{", '{"a": 3}', '{"a": "ä', "\0\0\0"])
def test_a_last_line_without_its_newline_does_not_count(tmp_path: Path, end: str) -> None:
    path = tmp_path / "lines"
    whole = b'{"a": 1}\n{"a": 2}\n'
    path.write_bytes(whole + end.encode()[: len(end)])
    assert read_lines(path) == [{"a": 1}, {"a": 2}]
    drop_unfinished(path)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b'{"a"'])
def test_no_line_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lines"
    path.write_bytes(content)
    assert read_lines(path) == []
    drop_unfinished(path)
    assert path.read_bytes() == b""


def test_a_file_that_is_not_there_yet(tmp_path: Path) -> None:
    drop_unfinished(tmp_path / "lines")
    assert not (tmp_path / "lines").exists()


@pytest.mark.parametrize("line", [b'{"a": ', b"", b"3", b"null", b"\xff", b'{"a": 1}{"a": 2}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(DataError, match="lines, line 2: not a JSON record"):
        read_lines(path)
