"""Who may talk to a server, and how it proves who it is."""

from __future__ import annotations

import hmac
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from convoy.errors import ServerError, UsageError
from convoy.split.server.logs import Log
from convoy.split.server.refusals import RefusedError, Status

SHORTEST_TOKEN = 16
_SCHEME = "bearer "


@dataclass(frozen=True, kw_only=True)
class SecurityOptions:
    """Files, all in PEM but for the token's."""

    tls_cert: Path | None = None
    """The server's certificate, and those between it and the authority's."""
    tls_key: Path | None = None
    client_ca: Path | None = None
    """Clients need a certificate of this authority."""
    token_file: Path | None = None
    """Clients need to know what it contains."""
    insecure: bool = False
    """Listen beyond this machine without the above."""


@dataclass(frozen=True, kw_only=True)
class Security:
    """What was made of the options."""

    token: bytes | None = None
    credentials: Any = None
    """grpc.ServerCredentials, where there is TLS."""
    context: ssl.SSLContext | None = None
    """The same, for HTTP."""

    def check(self, authorization: str | None) -> None:
        """Raise RefusedError unless authorization is `Bearer TOKEN`, where one is needed."""
        if self.token is None:
            return
        said = authorization or ""
        is_bearer = said[: len(_SCHEME)].lower() == _SCHEME
        given = said[len(_SCHEME) :].strip().encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self.token) or not is_bearer:
            raise RefusedError(
                Status.UNAUTHENTICATED,
                "this server needs a token, and the request has "
                + ("another one" if is_bearer else "none")
                + ". Send `authorization: Bearer TOKEN`, with the token of the server's "
                "--token-file",
            )


def prepare(options: SecurityOptions, host: str, log: Log) -> Security:
    """Read and check the files.

    Raises:
        UsageError: options that do not go together, or too few of them for `host`.
        ServerError: a file that cannot be used; says why.
    """
    if (options.tls_cert is None) != (options.tls_key is None):
        raise UsageError("--tls-cert and --tls-key go together: give both, or neither")
    if options.client_ca is not None and options.tls_cert is None:
        raise UsageError("--client-ca needs TLS: give --tls-cert and --tls-key as well")
    if not is_loopback(host):
        missing = [
            what
            for what, given in (
                ("--tls-cert and --tls-key", options.tls_cert),
                ("--token-file", options.token_file),
            )
            if given is None
        ]
        if missing and not options.insecure:
            raise UsageError(
                f"--host {host} can be reached from other machines; expected "
                f"{' and '.join(missing)} as well. Or listen on 127.0.0.1, or say --insecure"
            )
        if missing:
            log("warning", "insecure", host=host, missing=missing)
    token = None if options.token_file is None else _token(options.token_file, log)
    if options.tls_cert is None or options.tls_key is None:
        if token is not None:
            log("warning", "token without TLS", message="whoever sees the network can read it")
        return Security(token=token)
    cert = _read(options.tls_cert, "--tls-cert")
    key = _read(options.tls_key, "--tls-key")
    _warn_if_open(options.tls_key, "--tls-key", log)
    context = _context(options.tls_cert, options.tls_key)
    check_validity(context, cert, options.tls_cert)
    authority = None
    if options.client_ca is not None:
        authority = _read(options.client_ca, "--client-ca")
        try:
            context.load_verify_locations(cadata=authority.decode("ascii", "replace"))
        except (ssl.SSLError, ValueError):
            raise ServerError(
                f"--client-ca {options.client_ca} has no certificate in PEM"
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED
    credentials = grpc.ssl_server_credentials(
        [(key, cert)], root_certificates=authority, require_client_auth=authority is not None
    )
    return Security(token=token, credentials=credentials, context=context)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`. Raises ServerError."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return all(ipaddress.ip_address(a).is_loopback for a in addresses_of(host))


def addresses_of(host: str) -> list[str]:
    """A host's addresses, version 4 first. Raises ServerError."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ServerError(
            f"--host {host}: this machine knows no such address ({error}). Expected one of its "
            "own, such as 127.0.0.1, or 0.0.0.0 for all"
        ) from None
    return [str(entry[4][0]) for entry in sorted(found, key=lambda e: e[0] != socket.AF_INET)]


def check_validity(context: ssl.SSLContext, cert: bytes, path: Path) -> None:
    """Raise ServerError unless clients that trust the certificate itself would take it now.

    A handshake in memory finds what every client would: that it has expired, is not valid yet, or
    is not one for servers.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(cadata=cert.decode("ascii", "replace"))
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server),
        context.wrap_bio(to_server, to_client, server_side=True),
    ]
    try:
        for _ in range(3):
            for end in ends:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
    except ssl.SSLCertVerificationError as error:
        raise ServerError(
            f"--tls-cert {path} would be refused by clients: {error.verify_message}. Issue another"
        ) from None
    except ssl.SSLError as error:
        raise ServerError(f"--tls-cert {path} cannot be used: {error.reason}") from None


def _context(cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            raise ServerError(f"--tls-key {key} is not the key of --tls-cert {cert}") from None
        raise ServerError(
            f"--tls-cert {cert} and --tls-key {key} cannot be used "
            f"({error.reason or 'not in PEM'}). Expected a certificate and its key, in PEM"
        ) from None
    context.set_alpn_protocols(["http/1.1"])
    return context


def _no_password() -> str:
    raise ServerError("--tls-key is encrypted. Expected a key without a password")


def _token(path: Path, log: Log) -> bytes:
    text = _read(path, "--token-file").strip()
    if not text or not all(33 <= byte <= 126 for byte in text):
        raise ServerError(
            f"--token-file {path}: expected one word of printable ASCII characters. "
            f"Make one: openssl rand -hex 32 > {path}"
        )
    if len(text) < SHORTEST_TOKEN:
        log("warning", "short token", characters=len(text), expected=SHORTEST_TOKEN)
    _warn_if_open(path, "--token-file", log)
    return text


def _warn_if_open(path: Path, option: str, log: Log) -> None:
    if path.stat().st_mode & 0o007:
        advice = f"chmod o-rwx {path}"
        log("warning", "readable by others", option=option, path=str(path), advice=advice)


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ServerError(f"{option} {path} cannot be read: {error.strerror}") from None
