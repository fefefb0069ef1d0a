"""Numbers of nodes as people write them: "1,2,4,...,1024"."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from convoy.errors import UsageError

MOST = 8192
"""More nodes than this take minutes to play, and nobody asks for them by accident."""


def parse_counts(text: str) -> tuple[int, ...]:
    """Rising numbers of nodes; `...` goes on by the factor of the two numbers before it.

    Raises:
        UsageError: anything else.
    """
    counts: list[int] = []
    words = [word.strip() for word in text.split(",")]
    for position, word in enumerate(words):
        if word in ("...", "…"):
            counts += _between(text, counts, words[position + 1 : position + 2])
        elif word.isascii() and word.isdecimal():
            counts.append(int(word))
        else:
            raise _wrong(text, f"{word!r} is no number")
    return check_counts(counts, text)


def check_counts(counts: Sequence[int], text: str) -> tuple[int, ...]:
    """`counts`, if they rise from 1 or more to at most `MOST`; UsageError if not."""
    if not counts:
        raise _wrong(text, "there is none")
    if counts[0] < 1 or any(b <= a for a, b in itertools.pairwise(counts)):
        raise _wrong(text, "they do not rise from 1 or more")
    if counts[-1] > MOST:
        raise _wrong(text, f"{counts[-1]} is more than {MOST}")
    return tuple(counts)


def _between(text: str, before: Sequence[int], after: Sequence[str]) -> list[int]:
    if len(before) < 2 or not after or not (after[0].isascii() and after[0].isdecimal()):
        raise _wrong(text, "'...' stands between two numbers and a last one")
    factor, rest = divmod(before[-1], before[-2]) if before[-2] else (0, 1)
    if rest or factor < 2:
        raise _wrong(text, f"{before[-1]} is no multiple of {before[-2]}")
    last, found = int(after[0]), []
    following = before[-1] * factor
    while following < min(last, MOST + 1):
        found.append(following)
        following *= factor
    if following != last and last <= MOST:
        raise _wrong(text, f"the row misses {last}: it comes to {following}")
    return found


def _wrong(text: str, why: str) -> UsageError:
    return UsageError(
        f"--nodes {text}: {why}; expected rising numbers of nodes, as 1,2,4,8 or 1,2,4,...,1024"
    )
