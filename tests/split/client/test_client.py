"""The client against a server that behaves as told: right results, each once, in order."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
from PIL import Image

from convoy.errors import ManifestError, ServerError, UnknownNameError, UsageError
from convoy.split.client import AsyncClient, Client, Result
from convoy.split.client.sources import open_source
from convoy.split.costs import Curve
from convoy.split.manifest import ModelFile, to_json

from .. import toy
from .played_cloud import PlayedCloud

PATIENT: dict[str, Any] = {"connect_s": 30, "deadline_s": 30, "linger_s": 30}
"""A busy computer is to change nothing."""


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    toy.export(folder)
    return folder


def in_loop(what: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(what(), 60))


def check(results: list[Result], pixels: np.ndarray, tolerance: float = 1e-4) -> None:
    """Each image has its own result, once, where it belongs."""
    assert [r.index for r in results] == list(range(len(pixels)))
    assert all(r.error is None for r in results)
    found = np.stack([r.scores for r in results])
    np.testing.assert_allclose(found, toy.logits(pixels), atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize(
    ("way", "tolerance"),
    [
        ("edge", 1e-4),
        ("relu/float32", 1e-4),
        ("relu/uint8+zstd", 0.1),
        ("relu/uint4+zstd", 1.5),
        ("picture/float32", 1e-4),
        ("picture/uint8", 1e-4),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 16])
def test_every_way_computes_the_network(
    exported: Path, way: str, tolerance: float, batch_size: int
) -> None:
    pixels = toy.pictures(50)
    cloud = PlayedCloud(exported)

    async def run() -> list[Result]:
        async with (
            cloud.up() as server,
            AsyncClient(exported, server, way=way, batch_size=batch_size, **PATIENT) as client,
        ):
            return [result async for result in client.stream(pixels)]

    results = in_loop(run)
    check(results, pixels, tolerance)
    assert {r.where for r in results} == {way}
    expected = 0 if way == "edge" else 1 + -(-50 // batch_size)  # one to see whether it takes it
    assert len(cloud.asked) == expected


def test_without_a_server_the_edge_computes_everything(exported: Path) -> None:
    pixels = toy.pictures(20)
    with Client(exported, None, batch_size=8) as client:
        check(list(client.map(pixels)), pixels)
        assert client.summary.as_json()["computed"] == {"edge": 20}
        assert client.summary.sent_bytes == 0
        one = client(pixels[3])
        assert one.class_name == toy.CLASSES[int(toy.logits(pixels[3:4]).argmax())]


def test_results_come_in_order_though_answers_do_not(exported: Path) -> None:
    pixels = toy.pictures(40)
    cloud = PlayedCloud(exported, delays=[0.2, 0.0, 0.1, 0.0, 0.15] * 8)

    async def run() -> list[Result]:
        async with (
            cloud.up() as server,
            AsyncClient(exported, server, way="picture/uint8", **PATIENT) as client,
        ):
            return [result async for result in client.stream(pixels)]

    check(in_loop(run), pixels)


def test_a_cloud_that_falls_silent_costs_no_image(exported: Path) -> None:
    pixels = toy.pictures(60)
    cloud = PlayedCloud(exported)
    gone: list[str] = []

    async def run() -> tuple[list[Result], AsyncClient]:
        async with (
            cloud.up() as server,
            AsyncClient(exported, server, way="relu/float32", connect_s=30, deadline_s=3) as client,
        ):

            async def slowly() -> Any:
                for number, picture in enumerate(pixels):
                    cloud.silent = 20 <= number < 40
                    if number == 40:
                        while not any("is back" in text for text in client.notices):
                            await asyncio.sleep(0.02)
                    await asyncio.sleep(0.01)
                    yield picture

            results = [result async for result in client.stream(slowly())]
            gone.extend(client.notices)
            return results, client

    results, client = in_loop(run)
    check(results, pixels)
    where = [r.where for r in results]
    assert where[:15] == ["relu/float32"] * 15
    assert where[22:36] == ["edge"] * 14
    assert where[-5:] == ["relu/float32"] * 5
    assert client.summary.fallbacks > 0
    assert client.summary.outages == 1
    assert "DEADLINE_EXCEEDED" in gone[0]


def test_a_server_that_is_killed_and_comes_again(exported: Path) -> None:
    pixels = toy.pictures(80)
    cloud = PlayedCloud(exported)

    async def run() -> list[Result]:
        first, again = cloud.up(), cloud.up()
        server = await first.__aenter__()
        async with AsyncClient(exported, server, way="relu/float32", **PATIENT) as client:

            async def slowly() -> Any:
                for number, picture in enumerate(pixels):
                    if number == 20:
                        await first.__aexit__(None, None, None)
                    if number == 50:
                        await again.__aenter__()
                        while not any("is back" in text for text in client.notices):
                            await asyncio.sleep(0.02)
                    await asyncio.sleep(0.002)
                    yield picture

            results = [result async for result in client.stream(slowly())]
        await again.__aexit__(None, None, None)
        return results

    results = in_loop(run)
    check(results, pixels)
    assert [r.where for r in results[40:50]] == ["edge"] * 10
    assert results[-1].where == "relu/float32"


def test_a_server_with_too_much_to_do_is_asked_again(exported: Path) -> None:
    pixels = toy.pictures(10)
    cloud = PlayedCloud(exported)

    async def run() -> tuple[list[Result], AsyncClient]:
        async with (
            cloud.up() as server,
            AsyncClient(exported, server, way="relu/float32", **PATIENT) as client,
        ):
            cloud.refuses = grpc.StatusCode.RESOURCE_EXHAUSTED
            results = [result async for result in client.stream(pixels)]
            return results, client

    results, client = in_loop(run)
    check(results, pixels)
    assert 1 <= client.summary.fallbacks <= 10
    assert client.summary.outages == 0


def test_an_answer_of_another_shape_is_no_result(exported: Path) -> None:
    pixels = toy.pictures(60)
    cloud = PlayedCloud(exported)

    async def run() -> tuple[list[Result], AsyncClient]:
        async with (
            cloud.up() as server,
            AsyncClient(exported, server, way="relu/float32", **PATIENT) as client,
        ):
            cloud.wrong_width = True
            return [result async for result in client.stream(pixels)], client

    results, client = in_loop(run)
    check(results, pixels)
    assert {r.where for r in results} == {"edge"}
    assert client.summary.outages == 0  # it is there, and answers others well
    assert client.summary.fallbacks < 60  # and is not asked again at once


def test_a_server_that_answers_wrongly_from_the_start_is_refused(exported: Path) -> None:
    with pytest.raises(ServerError, match=r"answered with \[\[1, 10\]\]; expected FP32 \[1, 5\]"):
        with_server(exported, PlayedCloud(exported, wrong_width=True))


def test_a_way_that_is_refused_in_the_middle_is_left_and_others_are_gone(exported: Path) -> None:
    pixels = toy.pictures(60)
    cloud = PlayedCloud(exported)

    async def run() -> tuple[list[Result], AsyncClient]:
        async with cloud.up() as server, AsyncClient(exported, server, **PATIENT) as client:
            edge = client.ways.named("edge")
            edge.timed = Curve(sizes=(1,), values=(1.0,))  # so that it is worth while to ask

            async def slowly() -> Any:
                for number, picture in enumerate(pixels):
                    edge.correction = 1.0
                    cloud.takes = ("float32", "uint8") if number >= 20 else None
                    await asyncio.sleep(0.005)
                    yield picture

            return [result async for result in client.stream(slowly())], client

    results, client = in_loop(run)
    check(results, pixels, 1.5)
    assert client.summary.outages == 0
    late = {r.where for r in results[45:]}
    assert late <= {"picture/float32", "picture/uint8", "relu/float32"}


BAFFLED = ("INVALID_ARGUMENT", "INTERNAL", "UNKNOWN")


@pytest.mark.parametrize("baffled", BAFFLED)
def test_a_server_that_is_not_ours_takes_float32_only(exported: Path, baffled: str) -> None:
    pixels = toy.pictures(10)
    cloud = PlayedCloud(
        exported, takes=("float32",), baffled=grpc.StatusCode[baffled], says_times=False
    )

    async def run() -> tuple[list[Result], AsyncClient]:
        async with cloud.up() as server, AsyncClient(exported, server, **PATIENT) as client:
            return [result async for result in client.stream(pixels)], client

    results, client = in_loop(run)
    check(results, pixels)
    assert {r.where for r in results} <= {"edge", "relu/float32", "picture/float32"}
    said = " ".join(client.notices)
    assert "does not take picture/uint8, picture/jpeg" in said
    assert "relu/uint4+zstd" not in said  # its accuracy keeps it away anyhow


@pytest.mark.parametrize("baffled", BAFFLED)
def test_a_way_that_such_a_server_does_not_take_is_an_error_at_the_start(
    exported: Path, baffled: str
) -> None:
    status = grpc.StatusCode[baffled]
    cloud = PlayedCloud(exported, takes=("float32",), baffled=status, says_times=False)

    async def run(way: str) -> set[str | None]:
        async with (
            cloud.up() as server,
            AsyncClient(exported, server, way=way, **PATIENT) as client,
        ):
            return {result.where async for result in client.stream(toy.pictures(5))}

    with pytest.raises(ServerError, match="does not take picture/jpeg.*ask for picture/float32"):
        in_loop(lambda: run("picture/jpeg"))
    assert in_loop(lambda: run("picture/float32")) == {"picture/float32"}


def test_a_mishap_at_the_start_costs_a_server_of_ours_no_way(exported: Path) -> None:
    cloud = PlayedCloud(exported, takes=("float32",), baffled=grpc.StatusCode.INTERNAL)

    async def run() -> AsyncClient:
        async with cloud.up() as server, AsyncClient(exported, server, **PATIENT) as client:
            return client

    client = in_loop(run)
    assert not client.notices
    assert client.ways.named("picture/uint8").refused_until < time.perf_counter()


@pytest.mark.parametrize("batch_size", [1, 16])
def test_a_slow_server_that_says_no_times_is_not_overrun(exported: Path, batch_size: int) -> None:
    cloud = PlayedCloud(exported, takes=("float32",), says_times=False, serial_s=0.05)
    pixels = toy.pictures(40 * batch_size)

    async def run() -> tuple[list[Result], AsyncClient]:
        async with (
            cloud.up() as server,
            AsyncClient(
                exported,
                server,
                way="picture/float32",
                batch_size=batch_size,
                connect_s=30,
                deadline_s=1,
            ) as client,
        ):
            return [result async for result in client.stream(pixels)], client

    results, client = in_loop(run)
    check(results, pixels)
    assert client.summary.outages == 0
    assert client.summary.fallbacks == 0


def test_without_fallback_what_fails_is_said(exported: Path) -> None:
    cloud = PlayedCloud(exported)

    async def run() -> list[Result]:
        async with (
            cloud.up() as server,
            AsyncClient(
                exported, server, way="relu/float32", deadline_s=0.2, fallback=False
            ) as client,
        ):
            cloud.silent = True
            return [result async for result in client.stream(toy.pictures(3))]

    results = in_loop(run)
    assert [r.index for r in results] == [0, 1, 2]
    assert [r.where for r in results] == [None] * 3
    assert "DEADLINE_EXCEEDED" in str(results[0].error)
    assert all(r.error for r in results)  # those after it, too: the cloud is gone


def test_without_fallback_and_without_a_cloud_nothing_is_computed(exported: Path) -> None:
    with Client(exported, "grpc://localhost:1", connect_s=0.2, fallback=False) as client:
        results = list(client.map(toy.pictures(3)))
    assert ["does not answer" in str(r.error) for r in results] == [True] * 3


def test_batches_wait_for_those_ahead_and_none_is_late(exported: Path) -> None:
    """A server that takes half the deadline, one after another: it is asked for one at a time."""
    cloud = PlayedCloud(exported, serial_s=0.5)

    async def run() -> tuple[list[Result], AsyncClient]:
        async with (
            cloud.up() as server,
            AsyncClient(
                exported, server, way="picture/uint8", connect_s=30, deadline_s=2, linger_s=30
            ) as client,
        ):
            results = [result async for result in client.stream(toy.pictures(6))]
            assert not client._away
            return results, client

    results, client = in_loop(run)
    check(results, toy.pictures(6))
    assert client.summary.fallbacks == 0
    assert client.summary.outages == 0


def test_after_an_outage_with_many_under_way_the_stream_goes_on(exported: Path) -> None:
    cloud = PlayedCloud(exported)
    pixels = toy.pictures(40)

    async def run() -> list[Result]:
        async with (
            cloud.up() as server,
            AsyncClient(
                exported, server, way="picture/uint8", connect_s=30, deadline_s=0.5
            ) as client,
        ):

            async def slowly() -> Any:
                for number, picture in enumerate(pixels):
                    cloud.serial_s = 0.4 if number in range(5, 9) else 0.0
                    await asyncio.sleep(0.02)
                    yield picture

            return [result async for result in client.stream(slowly())]

    check(in_loop(run), pixels)


def test_numbers_that_are_not_finite_are_no_result(exported: Path) -> None:
    cloud = PlayedCloud(exported)

    async def run() -> list[Result]:
        async with (
            cloud.up() as server,
            AsyncClient(exported, server, way="relu/float32", **PATIENT) as client,
        ):
            cloud.nan = True
            return [result async for result in client.stream(toy.pictures(4))]

    check(in_loop(run), toy.pictures(4))


def test_a_way_that_is_always_late_is_asked_less_and_less(exported: Path) -> None:
    cloud = PlayedCloud(exported)

    async def run() -> AsyncClient:
        async with (
            cloud.up() as server,
            AsyncClient(
                exported, server, way="relu/float32", connect_s=30, deadline_s=0.1
            ) as client,
        ):
            cloud.serial_s = 1.0

            async def slowly() -> Any:
                for picture in toy.pictures(100):
                    await asyncio.sleep(0.04)
                    yield picture

            check([result async for result in client.stream(slowly())], toy.pictures(100))
            return client

    client = in_loop(run)
    assert 1 <= client.summary.outages <= 6


def test_a_client_that_is_closed_says_so(exported: Path) -> None:
    client = Client(exported, None)
    held = client.map(toy.pictures(500))
    assert next(held).index == 0
    client.close()
    client.close()
    with pytest.raises(ServerError, match="closed"):
        client(toy.pictures(1)[0])
    with pytest.raises(ServerError, match="closed"):
        list(held)


def test_who_waits_while_another_thread_closes_is_told(exported: Path) -> None:
    client = Client(exported, None)
    blocked = threading.Event()
    found: list[BaseException] = []

    def endless() -> Any:
        yield toy.pictures(1)[0]
        blocked.wait(30)

    def read() -> None:
        try:
            for _ in client.map(endless()):
                pass
        except BaseException as error:
            found.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.3)
    client.close()
    reader.join(10)
    blocked.set()
    assert not reader.is_alive()
    assert isinstance(found[0], ServerError)


def test_several_threads_share_a_client(exported: Path) -> None:
    pixels = toy.pictures(40)
    with Client(exported, None, batch_size=4) as client, ThreadPoolExecutor(4) as threads:
        for results in threads.map(lambda _: list(client.map(pixels)), range(4)):
            check(results, pixels)


def test_a_broken_picture_among_others(exported: Path, tmp_path: Path) -> None:
    pixels = toy.pictures(3)
    for number in (0, 2):
        Image.fromarray(pixels[number]).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with Client(exported, None, batch_size=3) as client:
        results = list(client.map(open_source(f"folder:{tmp_path}")))
    assert [r.name for r in results] == ["0.png", "1.png", "2.png"]
    assert [r.error is None for r in results] == [True, False, True]
    assert "1.png" in str(results[1].error)
    assert results[1].label is None
    np.testing.assert_allclose(results[2].scores, toy.logits(pixels[2:])[0], atol=1e-4)


def test_an_error_of_the_source_is_the_callers(exported: Path) -> None:
    def images() -> Any:
        yield toy.pictures(1)[0]
        raise RuntimeError("the camera was unplugged")

    with Client(exported, None) as client:
        found = client.map(images())
        assert next(found).index == 0
        with pytest.raises(RuntimeError, match="unplugged"):
            next(found)
        assert client(toy.pictures(1)[0]).error is None


def test_who_stops_reading_ends_the_stream(exported: Path) -> None:
    taken = 0

    def endless() -> Any:
        nonlocal taken
        while True:
            taken += 1
            yield toy.pictures(1)[0]

    with Client(exported, None) as client:
        for result in client.map(endless()):
            if result.index == 5:
                break
        before = taken
        assert client(toy.pictures(1)[0]).error is None
    assert taken <= before + 1
    assert taken < 5000


def test_who_stops_reading_does_not_wait_for_the_next_picture(exported: Path) -> None:
    another = threading.Event()

    def slow() -> Any:
        yield toy.pictures(1)[0]
        another.wait(60)

    try:
        with Client(exported, None) as client:
            began = time.monotonic()
            for result in client.map(slow()):
                assert result.error is None
                break
            assert time.monotonic() - began < 30
            assert client(toy.pictures(1)[0]).error is None
    finally:
        another.set()


def test_whatever_is_wrong_with_a_picture_is_its_own_result(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strange(image: Any, by: Any) -> Any:
        if image.size == (9, 9):
            raise NotImplementedError("such a picture")
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr("convoy.split.client.batches.fitted", strange)
    images = [Image.new("RGB", size) for size in ((8, 8), (9, 9), (8, 8))]
    with Client(exported, None) as client:
        found = [result.error for result in client.map(images)]
    assert found == [None, "#1 is no picture: such a picture", None]


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN])
def test_one_model_that_fails_costs_its_own_ways_only(
    exported: Path, code: grpc.StatusCode
) -> None:
    cloud = PlayedCloud(exported)
    pixels = toy.pictures(40)

    async def run() -> tuple[list[Result], AsyncClient]:
        async with (
            cloud.up() as server,
            AsyncClient(exported, server, way="relu/float32", **PATIENT) as client,
        ):
            cloud.refuses, cloud.says = code, "this model is broken"
            return [result async for result in client.stream(pixels)], client

    results, client = in_loop(run)
    check(results, pixels)
    assert client.summary.outages == 0
    assert client.ways.named("relu/float32").refused_until > 0


def test_a_client_without_images_stops_measuring(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convoy.split.client.cloud.IN_USE_S", 0.2)
    monkeypatch.setattr("convoy.split.client.cloud.STALE_S", 0.01)
    monkeypatch.setattr("convoy.split.client.cloud.LONGEST_STALE_S", 0.01)
    cloud = PlayedCloud(exported)

    async def run() -> tuple[int, int]:
        async with cloud.up() as server, AsyncClient(exported, server, **PATIENT) as client:
            assert client.cloud is not None
            for _ in range(200):  # until the last probe has ended
                before = client.cloud.probe_bytes
                await asyncio.sleep(0.5)
                if client.cloud.probe_bytes == before:
                    break
            await asyncio.sleep(0.5)
            return before, client.cloud.probe_bytes

    before, after = in_loop(run)
    assert 0 < before == after


def test_bytes_are_those_of_the_batches_that_are_sent(exported: Path, tmp_path: Path) -> None:
    manifest = toy.export(tmp_path)
    np.save(tmp_path / "samples.npy", np.zeros((5, 8, 8, 3), np.uint8))
    digest = hashlib.sha256((tmp_path / "samples.npy").read_bytes()).hexdigest()
    samples = ModelFile(file="samples.npy", sha256=digest)
    (tmp_path / "manifest.json").write_text(to_json(replace(manifest, samples=samples)))
    client = AsyncClient(tmp_path, None, batch_size=10)
    uint8, zstd = (client.ways.named(name) for name in ("picture/uint8", "relu/uint8+zstd"))
    assert (uint8.sent_bytes(1), uint8.sent_bytes(10)) == (192, 1920)
    assert zstd.sent_bytes(10) < 5 * zstd.sent_bytes(1)  # ten that are alike
    by = client.ways.preprocessing
    for _ in range(30):
        payload = zstd.prepare(toy.pictures(10), by)
    assert zstd.sent_bytes(10) == pytest.approx(len(payload), rel=0.05)


def test_no_queue_is_filled_before_the_link_is_known(exported: Path) -> None:
    cloud = PlayedCloud(exported, serial_s=0.02)

    async def run() -> int:
        async with cloud.up() as server, AsyncClient(exported, server, **PATIENT) as client:
            assert client.cloud is not None
            way = client.ways.named("picture/uint8")
            client.cloud.meter.bandwidth_bytes_s = None
            client.chooser.choose = lambda now: way  # type: ignore[method-assign]
            client.cloud.meter.note = lambda *a: None  # type: ignore[method-assign,assign]
            client.cloud.meter.note_probe = lambda *a: None  # type: ignore[method-assign,assign]
            most = 0
            async for _ in client.stream(toy.pictures(10)):
                most = max(most, len(client._away))
            return most

    assert in_loop(run) <= 1


def test_results_come_while_others_are_computed(exported: Path) -> None:
    """Though the edge computes each on the loop, and the source never lets it wait."""
    computed: list[int] = []

    async def run() -> list[int]:
        async with AsyncClient(exported, None) as client:
            edge = client.ways.edge
            prepare = edge.prepare
            edge.timed = Curve(sizes=(1,), values=(1e-4,))
            edge.prepare = lambda *a: computed.append(1) or prepare(*a)  # type: ignore[method-assign,func-returns-value]
            results = client.stream(list(toy.pictures(60)))
            return [len(computed) - result.index async for result in results]

    assert max(in_loop(run)) < 10


def with_server(exported: Path, cloud: PlayedCloud, **options: Any) -> Any:
    """What becomes of a client that connects."""

    async def run() -> Any:
        async with cloud.up() as server, AsyncClient(exported, server, **options) as client:
            return list(client.notices)

    return in_loop(run)


def test_a_wrong_token_is_refused_at_once(exported: Path) -> None:
    cloud = PlayedCloud(exported, token="right")
    with pytest.raises(ServerError, match=r"no token that is known here. Give the server's token"):
        with_server(exported, cloud, token="wrong")
    assert with_server(exported, cloud, token="right") == []


def test_a_server_with_other_models_is_refused(exported: Path, tmp_path: Path) -> None:
    manifest = (exported / "manifest.json").read_text()
    folder = tmp_path / "other"
    shutil.copytree(exported, folder)
    (folder / "manifest.json").write_text(manifest.replace('"model": "relu"', '"model": "pool9"'))
    with pytest.raises(ServerError, match=r"no model 'pool9'.*same exported folder"):
        with_server(folder, PlayedCloud(exported))


def certified(authority: trustme.CA, host: str) -> grpc.ServerCredentials:
    issued = authority.issue_cert(host)
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    return grpc.ssl_server_credentials([(issued.private_key_pem.bytes(), chain)])


def test_tls_and_a_certificate_for_another_host(exported: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))

    async def run(host: str, ca: str) -> list[Result]:
        async with (
            PlayedCloud(exported).up(certified(authority, host)) as server,
            AsyncClient(
                exported, server, ca=tmp_path / ca, way="relu/float32", deadline_s=30
            ) as client,
        ):
            return [result async for result in client.stream(toy.pictures(3))]

    assert {r.where for r in in_loop(lambda: run("localhost", "ca.pem"))} == {"relu/float32"}
    with pytest.raises(ServerError, match=r"is for cloud\.example, and not for localhost"):
        in_loop(lambda: run("cloud.example", "ca.pem"))
    with pytest.raises(ServerError, match=r"certificate of localhost.* is refused.*other\.pem"):
        in_loop(lambda: run("localhost", "other.pem"))


def test_what_does_not_speak_as_it_is_called(exported: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    async def run(kind: str) -> None:
        async with PlayedCloud(exported).up(certified(authority, "localhost")) as server:
            plain = server.replace("grpcs", kind)
            async with AsyncClient(exported, plain, connect_s=1):
                pass

    with pytest.raises(ServerError, match="speaks TLS: call it grpcs://localhost"):
        in_loop(lambda: run("grpc"))


def test_a_server_that_asks_for_certificates(exported: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued = authority.issue_cert("localhost")
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    mutual = grpc.ssl_server_credentials(
        [(issued.private_key_pem.bytes(), chain)], authority.cert_pem.bytes(), True
    )

    async def run() -> None:
        async with (
            PlayedCloud(exported).up(mutual) as server,
            AsyncClient(exported, server, ca=tmp_path / "ca.pem", connect_s=1),
        ):
            pass

    with pytest.raises(ServerError, match="asks for a client's certificate, or for another"):
        in_loop(run)


def test_a_file_that_is_no_certificate(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("a key, perhaps")
    with pytest.raises(UsageError, match=r"ca\.pem has no certificate in PEM"):
        AsyncClient(exported, "grpcs://localhost:1", ca=tmp_path / "ca.pem")


def test_nobody_there_is_no_error(exported: Path) -> None:
    with Client(exported, "grpc://localhost:1", deadline_s=0.2) as client:
        check(list(client.map(toy.pictures(4))), toy.pictures(4))
        assert "does not answer" in client.notices[0]


@pytest.mark.parametrize(
    ("server", "options", "error", "says"),
    [
        ("cloud:80", {}, UsageError, "expected grpcs://HOST:PORT"),
        ("grpc://host:99999", {}, UsageError, "expected grpcs://HOST:PORT"),
        ("grpc://cloud.example:80", {"token": "x"}, UsageError, "in plain text"),
        (None, {"way": "pool2/uint8"}, UnknownNameError, "unknown way 'pool2/uint8'"),
        (None, {"objective": "speed"}, UsageError, "expected one of latency"),
        (None, {"deadline_s": 0}, UsageError, "more than 0"),
        (None, {"batch_size": 0}, UsageError, "1 to 4096"),
        (None, {"cert": Path("c.pem")}, UsageError, "belong together"),
        ("grpcs://host:1", {"ca": Path("/none.pem")}, UsageError, "cannot read /none.pem"),
    ],
)
def test_what_cannot_be(
    exported: Path, server: str | None, options: dict[str, Any], error: type, says: str
) -> None:
    with pytest.raises(error, match=says):
        AsyncClient(exported, server, **options)


def test_a_damaged_folder(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    (folder / "relu/1/edge.onnx").write_bytes(b"something else")
    with pytest.raises(ManifestError, match=r"edge\.onnx is not the file .* SHA-256"):
        AsyncClient(folder, None)
    with pytest.raises(ManifestError, match="convoy split export"):
        AsyncClient(tmp_path / "none", None)


def test_neither_torch_nor_ray_is_needed() -> None:
    code = (
        "import sys, convoy.split.client, convoy.split.client.sources\n"
        "found = {'torch', 'ray', 'onnx', 'matplotlib', 'zmq'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
