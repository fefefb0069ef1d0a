"""`convoy split serve` as a process: what it prints, and how signals end it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from . import tiny
from .running import PATIENCE_S, call, plain, until
from .running import stub as client

ONE = np.ones((1, *tiny.PICTURE), np.float32)
INFER = "/v2/models/full/infer"


@contextmanager
def process(folder: Path, *options: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """`convoy split serve`, and the line that it prints; ended with the block."""
    command = [sys.executable, "-m", "convoy", "split", "serve", str(folder)]
    started = subprocess.Popen(
        [*command, "--port", "0", "--http-port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with started:
        try:
            yield started, json.loads(started.stdout.readline() or "{}")
        finally:
            started.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(exported: Path, number: int) -> None:
    """A request that waits for others to be computed with is answered first."""
    with process(exported, "--batch-window", "600s") as (server, line):
        assert [(m["name"], m["version"]) for m in line["models"]] == [
            ("full", 1),
            ("full", 2),
            ("pool2", 1),
            ("pool2", 2),
        ]
        with client(line["grpc"]) as asked:
            waiting = asked.ModelInfer.future(plain(ONE), timeout=PATIENCE_S)
            until(lambda: b"in_flight_requests 1.0" in call(line["http"], "/metrics")[2])
            os.kill(server.pid, number)
            assert waiting.result().outputs
        assert server.wait(PATIENCE_S) == 0
        events = [json.loads(text)["event"] for text in server.stderr]
        assert events == ["ready", "draining", "request", "ended"]
        assert server.stdout.read() == ""


def test_a_second_signal_ends_it_at_once(exported: Path) -> None:
    body = b"{}"
    with process(exported, "--drain", "600s") as (server, line):
        host, _, port = line["http"].rpartition(":")
        with socket.create_connection((host, int(port))) as slow:
            head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body) + 1}\r\n\r\n"
            slow.sendall(head.encode() + body)  # and never the rest
            until(lambda: b"in_flight_requests 1.0" in call(line["http"], "/metrics")[2])
            os.kill(server.pid, signal.SIGTERM)
            until(lambda: call(line["http"], "/v2/health/ready")[0] == 503)
            os.kill(server.pid, signal.SIGTERM)
            assert server.wait(PATIENCE_S) == 128 + signal.SIGTERM


def test_what_keeps_it_from_starting_is_one_paragraph(exported: Path) -> None:
    with process(exported, "--host", "0.0.0.0") as (server, line):
        assert line == {}
        assert server.wait(PATIENCE_S) == 2
        error = server.stderr.read()
    assert error.startswith("error: --host 0.0.0.0 can be reached")
    assert "Traceback" not in error
