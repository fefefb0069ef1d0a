from __future__ import annotations

import pytest

from convoy.errors import UsageError
from convoy.scaling import parse_counts


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("1", (1,)),
        ("1,2,4,...,1024", tuple(2**i for i in range(11))),
        ("8, 16, ..., 64", (8, 16, 32, 64)),
        ("1,3,...,27,28", (1, 3, 9, 27, 28)),
        ("2,4,...,8", (2, 4, 8)),
        ("64,864", (64, 864)),
    ],
)
def test_rows(text: str, counts: tuple[int, ...]) -> None:
    assert parse_counts(text) == counts


@pytest.mark.parametrize(
    "text",
    ["", "1,,2", "0,1", "2,1", "1,1", "one", "...,8", "1,...,8", "1,2,...", "2,3,...,9", "-1,2"]
    + ["1,2,4,...,1000", "1,2,...,x", "1,100000", "1,2,...,99999999999999999999", "0,0,...,4"],
)
def test_refusals(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--nodes .*expected rising numbers of nodes"):
        parse_counts(text)
