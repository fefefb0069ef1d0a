"""Convoy's own client against Convoy's own server, every way that there is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from convoy.errors import ServerError
from convoy.split.client import Client

from .. import toy
from .running import Running, running
from .test_security import TOKEN, Files

PATIENT = {"connect_s": 30, "deadline_s": 30, "linger_s": 30}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("toy")
    toy.export(made)
    return made


@pytest.fixture(scope="module")
def cloud(folder: Path) -> Iterator[Running]:
    with running(folder) as server:
        yield server


@pytest.mark.parametrize(
    "way",
    ["relu/float32", "relu/uint8+zstd", "relu/uint4+zstd", "picture/uint8", "picture/float32"],
)
def test_every_way(cloud: Running, folder: Path, way: str) -> None:
    pictures = toy.pictures(10)
    address = f"grpc://{cloud.addresses.grpc}"
    with Client(folder, address, way=way, batch_size=4, **PATIENT) as client:
        results = list(client.map(pictures))
    assert {result.where for result in results} == {way}
    found = np.stack([result.scores for result in results])
    steps = {"relu/uint8+zstd": 0.05, "relu/uint4+zstd": 0.5}.get(way, 1e-3)
    np.testing.assert_allclose(found, toy.logits(pictures), atol=steps)


def test_with_certificates_and_a_token(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convoy.split.server.security import SecurityOptions

    files = Files(tmp_path)
    security = SecurityOptions(
        tls_cert=files.cert, tls_key=files.key, client_ca=files.ca, token_file=files.token
    )
    own = {"ca": files.ca, "cert": files.client_cert, "key": files.client_key}
    with running(folder, security=security) as server:
        address = f"grpcs://{server.addresses.grpc}"
        way = "relu/uint8+zstd"
        with Client(folder, address, way=way, token=TOKEN, **own, **PATIENT) as client:
            assert [result.where for result in client.map(toy.pictures(2))] == [way] * 2
        monkeypatch.delenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", raising=False)
        monkeypatch.setenv("SSL_CERT_FILE", str(files.ca))  # as whom this machine trusts
        own.pop("ca")
        with Client(folder, address, way=way, token=TOKEN, **own, **PATIENT) as client:
            assert [result.where for result in client.map(toy.pictures(2))] == [way] * 2
        with (
            pytest.raises(ServerError, match="--token-file"),
            Client(folder, address, token="another", **own, **PATIENT),
        ):
            pass
