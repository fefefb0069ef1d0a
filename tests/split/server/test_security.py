"""Who is let in, and what a server refuses to start with."""

from __future__ import annotations

import datetime
import io
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme

from convoy.errors import ConvoyError, ServerError, UsageError
from convoy.split.server.logs import Log
from convoy.split.server.security import Security, SecurityOptions, prepare

from . import tiny
from .running import Running, call, document, infer, plain, refused, running, stub

ONE = np.zeros((1, *tiny.PICTURE), np.float32)
TOKEN = "0123456789abcdef0123456789abcdef"
INFER = "/v2/models/full/infer"


class Files:
    """An authority, a server's certificate, a client's, and a token."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca)
        self.cert, self.key = self.issue("server")
        self.client_cert, self.client_key = self.issue("client")
        self.token = folder / "token"
        self.token.write_text(TOKEN + "\n")
        self.token.chmod(0o600)

    def issue(self, name: str, **more: Any) -> tuple[Path, Path]:
        made = self.authority.issue_cert("127.0.0.1", **more)
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        cert.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
        made.private_key_pem.write_to_path(key)
        key.chmod(0o600)
        return cert, key

    def credentials(self, *, client: bool = False) -> grpc.ChannelCredentials:
        if not client:
            return grpc.ssl_channel_credentials(self.ca.read_bytes())
        return grpc.ssl_channel_credentials(
            self.ca.read_bytes(), self.client_key.read_bytes(), self.client_cert.read_bytes()
        )

    def context(self, *, client: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca)
        if client:
            context.load_cert_chain(self.client_cert, self.client_key)
        return context


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("security"))


@pytest.fixture(scope="module")
def guarded(exported: Path, files: Files) -> Iterator[Running]:
    security = SecurityOptions(
        tls_cert=files.cert, tls_key=files.key, client_ca=files.ca, token_file=files.token
    )
    with running(exported, security=security) as server:
        yield server


def bearer(token: str) -> dict[str, Any]:
    return {"metadata": (("authorization", f"Bearer {token}"),)}


def test_who_has_certificate_and_token_is_let_in(guarded: Running, files: Files) -> None:
    credentials, context = files.credentials(client=True), files.context(client=True)
    infer(guarded.addresses.grpc, plain(ONE), credentials=credentials, **bearer(TOKEN))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for path, body in ((INFER, document(ONE)), ("/v2", None), ("/metrics", None)):
        assert call(guarded.addresses.http, path, body, headers, context)[0] == 200


@pytest.mark.parametrize("token", [None, "", "another", TOKEN[:-1], TOKEN + "0", "é"])
def test_who_has_no_token_is_not(guarded: Running, files: Files, token: str | None) -> None:
    credentials, context = files.credentials(client=True), files.context(client=True)
    how = bearer(token) if token is not None and token.isascii() else {}
    status, details = refused(
        lambda: infer(guarded.addresses.grpc, plain(ONE), credentials=credentials, **how)
    )
    assert (status, "--token-file" in details) == ("UNAUTHENTICATED", True)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    for path, body in (
        (INFER, document(ONE)),
        ("/v2", None),
        ("/v2/models/full", None),
        ("/v2/models/full/ready", None),
        ("/metrics", None),
    ):
        status, sent, _ = call(guarded.addresses.http, path, body, headers, context)
        assert (status, sent["WWW-Authenticate"]) == (401, "Bearer")


def test_whether_it_lives_and_is_ready_needs_no_token(guarded: Running, files: Files) -> None:
    from tritonclient.grpc import service_pb2 as pb

    context = files.context(client=True)
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert call(guarded.addresses.http, path, context=context)[0] == 200
    with stub(guarded.addresses.grpc, files.credentials(client=True)) as asked:
        assert asked.ServerLive(pb.ServerLiveRequest(), timeout=60).live
        assert asked.ServerReady(pb.ServerReadyRequest(), timeout=60).ready
        with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
            asked.ServerMetadata(pb.ServerMetadataRequest(), timeout=60)


def test_who_has_no_certificate_is_not(guarded: Running, files: Files) -> None:
    status, _ = refused(
        lambda: infer(
            guarded.addresses.grpc, plain(ONE), credentials=files.credentials(), **bearer(TOKEN)
        )
    )
    assert status == "UNAVAILABLE"
    with pytest.raises((ssl.SSLError, ConnectionError)):
        call(guarded.addresses.http, "/v2/health/live", context=files.context())


def test_a_client_without_tls_is_not_answered(guarded: Running) -> None:
    assert refused(lambda: infer(guarded.addresses.grpc, plain(ONE)))[0] == "UNAVAILABLE"


def test_the_token_is_never_logged(guarded: Running) -> None:
    assert TOKEN not in guarded.lines.getvalue()


def prepared(host: str = "127.0.0.1", **options: Any) -> tuple[Security, list[dict[str, Any]]]:
    """What is made of options, and what is logged of them."""
    lines = io.StringIO()
    security = prepare(SecurityOptions(**options), host, Log(stream=lines))
    return security, [json.loads(line) for line in lines.getvalue().splitlines()]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
@pytest.mark.parametrize("given", [(), ("token",), ("tls",)])
def test_beyond_loopback_it_needs_both(files: Files, host: str, given: tuple[str, ...]) -> None:
    options: dict[str, Any] = {}
    if "token" in given:
        options["token_file"] = files.token
    if "tls" in given:
        options |= {"tls_cert": files.cert, "tls_key": files.key}
    with pytest.raises(UsageError, match="can be reached from other machines.*--insecure"):
        prepared(host, **options)
    _, lines = prepared(host, **options, insecure=True)
    assert "insecure" in [line["event"] for line in lines]


def test_beyond_loopback_with_both(files: Files) -> None:
    security, lines = prepared(
        "0.0.0.0", tls_cert=files.cert, tls_key=files.key, token_file=files.token
    )
    assert security.context is not None
    assert not lines


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_loopback_needs_nothing(host: str) -> None:
    assert prepared(host)[0].token is None


def test_a_host_that_is_none() -> None:
    with pytest.raises(ServerError, match="knows no such address"):
        prepared("no.such.host.invalid")


def expired(files: Files) -> dict[str, Any]:
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    cert, key = files.issue("expired", not_before=past, not_after=past.replace(year=2021))
    return {"tls_cert": cert, "tls_key": key}


def early(files: Files) -> dict[str, Any]:
    future = datetime.datetime(2200, 1, 1, tzinfo=datetime.UTC)
    cert, key = files.issue("early", not_before=future, not_after=future.replace(year=2201))
    return {"tls_cert": cert, "tls_key": key}


def rubbish(files: Files) -> Path:
    path = files.folder / "rubbish"
    path.write_text("two words")
    return path


WRONG = {
    "key alone": (lambda f: {"tls_key": f.key}, "go together"),
    "certificate alone": (lambda f: {"tls_cert": f.cert}, "go together"),
    "authority alone": (lambda f: {"client_ca": f.ca}, "--client-ca needs TLS"),
    "no certificate": (
        lambda f: {"tls_cert": f.folder / "none", "tls_key": f.key},
        "--tls-cert .*none cannot be read: No such file",
    ),
    "another's key": (
        lambda f: {"tls_cert": f.cert, "tls_key": f.client_key},
        "client.key is not the key of --tls-cert .*server.pem",
    ),
    "rubbish": (
        lambda f: {"tls_cert": rubbish(f), "tls_key": f.key},
        "Expected a certificate and its key, in PEM",
    ),
    "no authority": (
        lambda f: {"tls_cert": f.cert, "tls_key": f.key, "client_ca": rubbish(f)},
        "--client-ca .*rubbish has no certificate",
    ),
    "expired": (expired, "refused by clients: certificate has expired"),
    "early": (early, "refused by clients: certificate is not yet valid"),
    "no token": (lambda f: {"token_file": f.folder / "none"}, "--token-file .* cannot be read"),
    "no word": (lambda f: {"token_file": rubbish(f)}, "expected one word of printable ASCII"),
}


@pytest.mark.parametrize("name", WRONG)
def test_files_that_cannot_be_used(files: Files, name: str) -> None:
    options, text = WRONG[name]
    with pytest.raises(ConvoyError, match=text):
        prepared(**options(files))


def test_files_that_others_can_read(files: Files, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("short")
    token.chmod(0o644)
    _, lines = prepared(token_file=token)
    assert {line["event"] for line in lines} == {
        "short token",
        "readable by others",
        "token without TLS",
    }
    assert not [line for line in lines if "short" in str(line.get("path"))]
