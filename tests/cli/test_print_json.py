from __future__ import annotations

import json
from pathlib import Path

import pytest

from convoy.cli.console import print_json


def test_what_json_has_no_number_for_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [1.5, float("nan")], "b": {"c": (float("inf"), 2)}, "d": Path("x")})
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"a": [1.5, None], "b": {"c": [None, 2]}, "d": "x"}
