"""Ten thousand malformed requests to `convoy split serve`: what it answers, and that it goes on.

    python benchmarks/split_malformed.py --requests 10000

Drawn at random, as the tests' (tests/split/server/malformed.py) are, over gRPC, HTTP and as bytes
that are neither. Between them are requests that are right, whose answers are looked at.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.split.server import tiny
from tests.split.server.malformed import KINDS, Asker, drawn
from tests.split.server.running import infer, plain, rows_of

from common import write

WARM = 1000
"""Requests after which memory is first looked at: pools and caches are full then."""
EVERY = 100
"""Requests between two that are right."""


def is_right(address: str, one: Any, expected: Any) -> bool:
    """Whether the server still answers, and rightly."""
    return bool(np.allclose(rows_of(infer(address, plain(one))), expected, atol=1e-4))


def ask_all(process: psutil.Process, line: dict[str, Any], count: int) -> tuple[Any, list[int]]:
    """Statuses by kind, and resident bytes once warm and at the end."""
    draw = np.random.default_rng(0)
    one = draw.normal(size=(1, *tiny.PICTURE)).astype(np.float32)
    expected = one.reshape(1, -1) @ tiny.weights(2, tiny.PICTURE)
    statuses: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    kinds, resident = list(KINDS), [0, 0]
    asker = Asker(line["grpc"], line["http"])
    for number in range(count):
        kind = kinds[number % len(kinds)]
        statuses[kind][asker(drawn(kind, draw))] += 1
        if number % EVERY == 0 and not is_right(line["grpc"], one, expected):
            raise SystemExit(f"a wrong answer after {number} requests")
        if number == min(WARM, count - 1):
            resident[0] = process.memory_info().rss
    if not is_right(line["grpc"], one, expected):
        raise SystemExit("a wrong answer at the end")
    resident[1] = process.memory_info().rss
    asker.close()
    return statuses, resident


def main() -> None:
    """Ask, count, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    count = parser.parse_args().requests
    with tempfile.TemporaryDirectory() as name:
        folder, log = Path(name) / "exported", Path(name) / "log"
        tiny.export(folder)
        command = [sys.executable, "-m", "convoy", "split", "serve", str(folder)]
        command += ["--port", "0", "--http-port", "0"]
        with log.open("w") as stderr:
            server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
        try:
            assert server.stdout is not None
            line = json.loads(server.stdout.readline())
            statuses, resident = ask_all(psutil.Process(server.pid), line, count)
            crashes = 0 if server.poll() is None else 1
            server.terminate()
            ended = server.wait(60)
        finally:
            server.kill()
        lines = log.read_text().splitlines()
    events = Counter(json.loads(text)["event"] for text in lines)
    traces = sum("Traceback" in text for text in lines)
    rows: list[dict[str, Any]] = [
        {
            "kind": kind,
            "protocol": KINDS[kind][0],
            "requests": found.total(),
            "answers": ", ".join(f"{status} {n}" for status, n in found.most_common()),
        }
        for kind, found in statuses.items()
    ]
    right = sum(found["OK"] + found["200"] for found in statuses.values())
    megabytes = [size / 1e6 for size in resident]
    summary = (
        f"{count - right} refused, {right} right after all; "
        f"{crashes} crashes, {events['unforeseen']} errors of the server's own, {traces} "
        f"tracebacks, exit status {ended}; resident {megabytes[0]:.1f} MB after "
        f"{min(WARM, count)} requests, {megabytes[1]:.1f} MB at the end"
    )
    total = sum(row["requests"] for row in rows)
    rows.append({"kind": "all", "protocol": "", "requests": total, "answers": summary})
    about = (
        f"{count} malformed requests to one `convoy split serve`, by what is wrong with them, and "
        "how they were answered. Some changes leave a request right: OK and 200. Of bytes that are "
        "no request: the server closes the connection, waits for more, or greets as HTTP/2 does."
    )
    write("split_malformed", rows, about=about)


if __name__ == "__main__":
    main()
