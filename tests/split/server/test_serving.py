"""A server's life, and what it tells of it."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from convoy.cli.split.serve import parse_size
from convoy.errors import ConvoyError, ManifestError, ServerError, UsageError
from convoy.split import manifest as manifests
from convoy.split.server.core import Limits
from convoy.split.server.serving import Options, Server

from . import tiny
from .running import (
    PATIENCE_S,
    Running,
    call,
    document,
    infer,
    plain,
    refused,
    rows_of,
    running,
    until,
)
from .running import stub as client

ONE = np.ones((1, *tiny.PICTURE), np.float32)
INFER = "/v2/models/full/infer"


def test_too_much_is_refused_at_once(exported: Path) -> None:
    with (
        running(exported, Limits(max_concurrent=2, batch_window_s=0)) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        gate = server.gate()
        first = pool.submit(infer, server.addresses.grpc, plain(ONE))
        assert gate.reached.wait(PATIENCE_S)
        second = pool.submit(call, server.addresses.http, INFER, document(ONE))
        until(lambda: server.server.core.in_flight == 2)
        status, details = refused(lambda: infer(server.addresses.grpc, plain(ONE)))
        assert (status, "try again" in details) == ("RESOURCE_EXHAUSTED", True)
        code, headers, _ = call(server.addresses.http, INFER, document(ONE))
        assert (code, headers["Retry-After"]) == (503, "1")
        assert "convoy_split_in_flight_requests 2.0" in server.metrics()
        gate.opened.set()
        assert first.result(PATIENCE_S).outputs
        assert second.result(PATIENCE_S)[0] == 200
        assert infer(server.addresses.grpc, plain(ONE)).outputs
        figures = server.metrics()
    line = 'convoy_split_requests_total{model="",protocol="%s",status="RESOURCE_EXHAUSTED"} 1.0'
    assert line % "grpc" in figures
    assert line % "http" in figures


def test_neighbours_in_a_batch_make_no_difference(exported: Path) -> None:
    draw = np.random.default_rng(1)
    parts = [draw.normal(size=(n, *tiny.PICTURE)).astype(np.float32) for n in (1, 2, 3, 1)]
    with running(exported) as server, ThreadPoolExecutor(8) as pool:
        gate = server.gate()
        alone = pool.submit(infer, server.addresses.grpc, plain(ONE))
        assert gate.reached.wait(PATIENCE_S)
        waiting = [pool.submit(infer, server.addresses.grpc, plain(part)) for part in parts]
        wrong = pool.submit(infer, server.addresses.grpc, plain(ONE * np.float32(3e38)))
        until(lambda: server.server.core.in_flight == 6)
        until(lambda: server.in_loop(lambda: sum(b._images for b in batchers(server))) == 8)
        gate.opened.set()
        together = [rows_of(one.result(PATIENCE_S)) for one in waiting]
        assert refused(lambda: wrong.result(PATIENCE_S))[0] == "INVALID_ARGUMENT"
        assert alone.result(PATIENCE_S).outputs
        assert gate.batches == [1, 8]
        for part, rows in zip(parts, together, strict=True):
            np.testing.assert_allclose(
                rows, rows_of(infer(server.addresses.grpc, plain(part))), rtol=1e-5, atol=1e-5
            )


def batchers(server: Running) -> Any:
    return server.server.core.batchers.values()


def test_it_ends_when_all_is_answered_and_takes_nothing_more(exported: Path) -> None:
    with running(exported) as server, ThreadPoolExecutor(2) as pool:
        gate = server.gate()
        asked = [
            pool.submit(infer, server.addresses.grpc, plain(ONE)),
            pool.submit(call, server.addresses.http, INFER, document(ONE)),
        ]
        until(lambda: server.server.core.in_flight == 2)
        ending = asyncio.run_coroutine_threadsafe(server.server.stop(), server.loop)
        until(lambda: not server.server.core.is_ready)
        assert call(server.addresses.http, "/v2/health/live")[0] == 200
        assert call(server.addresses.http, "/v2/health/ready")[0] == 503
        assert call(server.addresses.http, "/v2/models/full/ready")[0] == 503
        assert call(server.addresses.http, INFER, document(ONE))[0] == 503
        with client(server.addresses.grpc) as other:
            assert not other.ServerReady(pb.ServerReadyRequest(), timeout=60).ready
            status, details = refused(lambda: other.ModelInfer(plain(ONE), timeout=60))
            assert (status, "ending" in details) == ("UNAVAILABLE", True)
        assert "convoy_split_ready 0.0" in server.metrics()
        gate.opened.set()
        assert asked[0].result(PATIENCE_S).outputs
        assert asked[1].result(PATIENCE_S)[0] == 200
        assert ending.result(PATIENCE_S) == 0
        with pytest.raises(ConnectionError):
            call(server.addresses.http, "/v2/health/live")


def test_it_ends_without_those_that_take_too_long(exported: Path) -> None:
    with running(exported, drain_s=0.1) as server, ThreadPoolExecutor(1) as pool:
        gate = server.gate()
        asked = pool.submit(infer, server.addresses.grpc, plain(ONE))
        assert gate.reached.wait(PATIENCE_S)
        ending = asyncio.run_coroutine_threadsafe(server.server.stop(), server.loop)
        assert ending.result(PATIENCE_S) == 1
        gate.opened.set()
        assert refused(lambda: asked.result(PATIENCE_S))[0] == "UNAVAILABLE"


def test_a_client_that_leaves_is_counted(exported: Path) -> None:
    with running(exported) as server, client(server.addresses.grpc) as asked:
        gate = server.gate()
        leaving = asked.ModelInfer.future(plain(ONE), timeout=PATIENCE_S)
        assert gate.reached.wait(PATIENCE_S)
        second = asked.ModelInfer.future(plain(ONE), timeout=PATIENCE_S)
        until(lambda: server.server.core.in_flight == 2)
        second.cancel()
        leaving.cancel()
        assert server.server.core.in_flight == 2  # a thread is at work for them
        gate.opened.set()
        until(lambda: server.server.core.in_flight == 0)
        assert infer(server.addresses.grpc, plain(ONE)).outputs


def test_what_is_counted(exported: Path) -> None:
    with running(exported) as server:
        infer(server.addresses.grpc, plain(np.repeat(ONE, 3, 0)))
        call(server.addresses.http, INFER, document(ONE))
        refused(lambda: infer(server.addresses.grpc, plain(ONE, "secret-model")))
        status, headers, body = call(server.addresses.http, "/metrics")
        figures = body.decode()
    assert (status, headers["Content-Type"].startswith("text/plain")) == (200, True)
    for line in (
        'convoy_split_requests_total{model="full",protocol="grpc",status="OK"} 1.0',
        'convoy_split_requests_total{model="full",protocol="http",status="OK"} 1.0',
        'convoy_split_requests_total{model="",protocol="grpc",status="NOT_FOUND"} 1.0',
        'convoy_split_images_total{model="full"} 4.0',
        'convoy_split_batch_images_count{model="full"} 2.0',
        'convoy_split_request_seconds_count{model="full",protocol="grpc"} 1.0',
        'convoy_split_queue_seconds_count{model="full"} 2.0',
        'convoy_split_decoding_seconds_count{model="full"} 2.0',
        'convoy_split_computing_seconds_count{model="full"} 2.0',
        "convoy_split_in_flight_requests 0.0",
        "convoy_split_ready 1.0",
    ):
        assert line in figures.splitlines()
    assert "convoy_split_received_bytes_total" in figures
    assert "secret-model" not in figures  # or clients could make as many labels as they like


def test_what_is_logged(exported: Path) -> None:
    with running(exported) as server:
        infer(server.addresses.grpc, plain(ONE))
        call(server.addresses.http, INFER, document(ONE, id="secret"))
    lines = server.logged()
    assert [line["event"] for line in lines] == [
        "ready",
        "request",
        "request",
        "draining",
        "ended",
    ]
    for line, protocol in zip(lines[1:3], ("grpc", "http"), strict=True):
        about = {key: line[key] for key in ("protocol", "model", "version", "images", "codec")}
        assert about == {
            "protocol": protocol,
            "model": "full",
            "version": 2,
            "images": 1,
            "codec": "float32",
        }
        assert (line["peer"], line["status"], line["level"]) == ("127.0.0.1", "OK", "info")
        assert line["seconds"] > 0
        assert line["bytes"] > 768
    assert "secret" not in server.lines.getvalue()


@pytest.mark.parametrize("option", ["port", "http_port"])
def test_a_port_that_is_taken(exported: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(ServerError, match=f"--{option.replace('_', '-')} {port}: .*0 for any"),
            running(exported, **{option: port}),
        ):
            pass


def test_two_servers_do_not_share_a_port(served: Running, exported: Path) -> None:
    port = int(served.addresses.grpc.rpartition(":")[2])
    with (
        pytest.raises(ServerError, match="Expected a port that is free"),
        running(exported, port=port),
    ):
        pass


def rewritten(folder: Path, old: str, new: str) -> None:
    path = folder / manifests.NAME
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda f: (f / "manifest.json").unlink(), "convoy split export"),
        (lambda f: (f / "full/1/full.onnx").write_bytes(b"x"), "not the file that manifest"),
        (lambda f: (f / "pool2/2/cloud.onnx").unlink(), "cloud.onnx, which manifest.json names"),
        (lambda f: rewritten(f, '"name": "input"', '"name": "image"'), "takes 'input'.*'image'"),
        (lambda f: rewritten(f, '"name": "output"', '"name": "x"'), "makes 'output'.*'x'"),
        (
            lambda f: tiny.export(f, classes=6),
            "makes \\[2, 5\\] of two images; expected \\[2, 6\\]",
        ),
    ],
)
def test_folders_that_do_not_fit(exported: Path, tmp_path: Path, damage: Any, text: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    damage(folder)
    with pytest.raises(ManifestError, match=text), running(folder):
        pass


def test_several_folders(exported: Path, tmp_path: Path) -> None:
    newer, same = tmp_path / "newer", tmp_path / "same"
    shutil.copytree(exported, same)
    with running(exported, folders=(exported, same)) as server:
        assert [*server.server.core.repository.versions("full")] == [1, 2]
    tiny.export(newer, versions=(3,))
    with running(exported, folders=(exported, newer)) as server:
        assert [*server.server.core.repository.versions("full")] == [1, 2, 3]
    tiny.export(newer, versions=(2,), seed=5)
    with (
        pytest.raises(ManifestError, match="both have version 2 of the model 'full'.*not the same"),
        running(exported, folders=(exported, newer)),
    ):
        pass
    manifest = json.loads((same / "manifest.json").read_text())
    manifest["variants"][0]["cuts"][0]["high"][0] += 1.0  # the same file, and other ranges
    (same / "manifest.json").write_text(json.dumps(manifest))
    with (
        pytest.raises(ManifestError, match="both have version 1 of the model 'pool2'"),
        running(exported, folders=(exported, same)),
    ):
        pass


@pytest.mark.parametrize(
    "options",
    [
        {"limits": Limits(message_bytes=10)},
        {"limits": Limits(message_bytes=1 << 31)},
        {"limits": Limits(max_batch=0)},
        {"limits": Limits(max_concurrent=0)},
        {"limits": Limits(batch_window_s=-1)},
        {"threads": 0},
        {"drain_s": -1},
    ],
)
def test_options_that_make_no_sense(options: Any) -> None:
    with pytest.raises(UsageError, match="--.*expected"):
        Options(folders=(Path(),), **options)


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MB", 64_000_000), ("1 KiB", 1024), ("1.5kB", 1500), ("2GB", 2 * 10**9), ("77", 77)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size("--max-message", text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1TB", "1e9", "1 M B"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--max-message"):
        parse_size("--max-message", text)


def test_neither_torch_nor_ray_is_imported() -> None:
    code = (
        "import sys, convoy.cli.split.serve, convoy.split.server.serving\n"
        "print([name for name in ('torch', 'ray') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_errors_at_start_leave_nothing(exported: Path) -> None:
    async def start() -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            server = Server(Options(folders=(exported,), port=other.getsockname()[1], http_port=0))
            with pytest.raises(ConvoyError):
                await server.start()

    before = threading.active_count()
    asyncio.run(start())
    until(lambda: threading.active_count() <= before)
