"""A connection to a server: what it takes to open one, and what its refusals mean."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from convoy.errors import ServerError, UsageError
from convoy.split.client.options import Options

_FORM = re.compile(r"(grpcs?)://(\[[0-9a-fA-F:.]+\]|[^:/\[\]]+):([0-9]{1,5})/?")
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
LARGEST_ANSWER = 64 << 20
ROOTS = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"
"""The variable that tells gRPC whom to trust."""
BUNDLES = ("ca-certificates.crt", "ca-bundle.crt")
"""All certificates of a system in one file, as distributions call it."""
OF_ANOTHER_HOST = (62, 64)
"""What OpenSSL calls a certificate whose names, or addresses, are others (X509_V_ERR_...)."""
FOR_GOOD = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
}
"""What no waiting mends."""
CHANNEL = (
    ("grpc.max_receive_message_length", LARGEST_ANSWER),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True)
class Target:
    """Where a server is."""

    host: str
    port: int
    secure: bool

    @property
    def address(self) -> str:
        """As gRPC wants it."""
        return f"{self.host}:{self.port}"


def parse_target(text: str) -> Target:
    """grpcs://HOST:PORT, or grpc:// without TLS. Raises UsageError."""
    found = _FORM.fullmatch(text)
    if found is None or not 0 < int(found[3]) < 65536:
        raise UsageError(f"server {text!r}: expected grpcs://HOST:PORT (grpc:// without TLS)")
    return Target(host=found[2], port=int(found[3]), secure=found[1] == "grpcs")


@dataclass
class Transport:
    """Opens connections to one server, and asks it things."""

    target: Target
    options: Options
    _credentials: grpc.ChannelCredentials | None = None
    _metadata: tuple[tuple[str, str], ...] = ()
    _channel: Any = None
    _stub: Any = None
    _closing: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        options, target = self.options, self.target
        if options.token is not None:
            if not target.secure and target.host not in LOOPBACK and not options.insecure:
                raise UsageError(
                    f"a token would go to {target.address} in plain text: use grpcs://, or say "
                    "--insecure"
                )
            self._metadata = (("authorization", f"Bearer {options.token}"),)
        if target.secure:
            _context(options)
            self._credentials = grpc.ssl_channel_credentials(
                root_certificates=_read(_trusted(options), "certificates"),
                private_key=_read(options.key, "a key"),
                certificate_chain=_read(options.cert, "a certificate"),
            )

    def connect(self) -> None:
        """Begin a new connection; the one before, if any, is left."""
        former = self._channel
        if self._credentials is not None:
            self._channel = grpc.aio.secure_channel(
                self.target.address, self._credentials, options=CHANNEL
            )
        else:
            self._channel = grpc.aio.insecure_channel(self.target.address, options=CHANNEL)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        if former is not None:
            task = asyncio.get_running_loop().create_task(former.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def infer(self, message: pb.ModelInferRequest, timeout_s: float) -> Any:
        """Ask for an inference: a call to be awaited, which may raise grpc.aio.AioRpcError."""
        return self._stub.ModelInfer(message, timeout=timeout_s, metadata=self._metadata)

    async def is_ready(self, timeout_s: float) -> bool:
        """Whether the server says that it is ready; False where it does not answer.

        Raises:
            ServerError: it refuses this client for good.
        """
        try:
            answer = await self._stub.ServerReady(
                pb.ServerReadyRequest(), timeout=timeout_s, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            if error.code() in FOR_GOOD:
                raise refusal(self.target, error) from None
            return False
        return bool(answer.ready)

    async def is_live(self, message: pb.ServerLiveRequest, timeout_s: float) -> bool:
        """Whether it answers at all."""
        call = self._stub.ServerLive(message, timeout=timeout_s, metadata=self._metadata)
        asking = asyncio.ensure_future(_answer(call))
        try:  # a channel that is left cancels its calls, and is not to cancel who waits for them
            await asyncio.wait({asking})
        finally:
            asking.cancel()
        return not asking.cancelled() and asking.exception() is None

    async def explain(self) -> str:
        """Why no connection comes about, as far as that may pass.

        Raises:
            ServerError: it is the certificate, or one side speaks TLS and the other does not.
        """
        target, options = self.target, self.options
        silent = f"{target.address} does not answer"
        try:
            await asyncio.get_running_loop().getaddrinfo(target.host.strip("[]"), target.port)
        except OSError as error:
            return f"{target.address}: {error.strerror}"
        if not target.secure:
            if await _speaks_tls(target):
                raise ServerError(f"{target.address} speaks TLS: call it grpcs://{target.address}")
            return silent
        try:
            context = _context(options)
            context.set_alpn_protocols(["h2"])
            opened = asyncio.open_connection(
                target.host.strip("[]"), target.port, ssl=context, ssl_handshake_timeout=2
            )
            reader, writer = await asyncio.wait_for(opened, 3)
            spoken = writer.get_extra_info("ssl_object").selected_alpn_protocol()
            is_let_in = await _is_let_in(reader)
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in OF_ANOTHER_HOST:
                names = ", ".join(await self._names()) or "nobody"
                raise ServerError(
                    f"the certificate of {target.address} is for {names}, and not for "
                    f"{target.host}: call the server by that name, or give it a certificate for "
                    "this one"
                ) from None
            raise ServerError(
                f"the certificate of {target.address} is refused: "
                f"{error.verify_message.rstrip('. ')}. Expected one that "
                f"{options.ca or 'an authority this system knows'} has signed; --ca names another "
                "authority's file"
            ) from None
        except ssl.SSLError as error:
            raise ServerError(
                f"{target.address} does not speak TLS as expected ({error.reason}). Is it without "
                "TLS (grpc://)?"
            ) from None
        except (OSError, TimeoutError):
            return silent  # that may change
        if not is_let_in:
            raise ServerError(
                f"{target.address} ends the connection once it is made: it asks for a client's "
                "certificate, or for another one. Give --cert and --key"
            )
        if spoken != "h2":
            raise ServerError(
                f"{target.address} speaks TLS and no HTTP/2: is it the server's HTTP port? Give "
                "the one for gRPC"
            )
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()
        return silent

    async def _names(self) -> list[str]:
        """Whom the server's certificate is for, if a known authority has signed it."""
        context, target = _context(self.options), self.target
        context.check_hostname = False
        try:
            opened = asyncio.open_connection(
                target.host.strip("[]"), target.port, ssl=context, ssl_handshake_timeout=2
            )
            _, writer = await asyncio.wait_for(opened, 3)
        except (OSError, TimeoutError):
            return []
        found = writer.get_extra_info("peercert") or {}
        writer.close()
        return [name for _, name in found.get("subjectAltName", ())]

    async def close(self) -> None:
        """Leave."""
        if self._channel is not None:
            await self._channel.close()
        if self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)


def _trusted(options: Options) -> Path | None:
    """Who may have signed certificates: gRPC by itself would take a list that it came with.

    Whoever was given, else whom gRPC was told, else whom this machine trusts.
    """
    places = ssl.get_default_verify_paths()
    files = [options.ca, os.environ.get(ROOTS), places.cafile]
    files += [f"{places.capath}/{name}" for name in BUNDLES if places.capath]
    found = (Path(file) for file in files if file and (file is options.ca or Path(file).is_file()))
    return next(found, None)


def _context(options: Options) -> ssl.SSLContext:
    """What certificates are checked by. Raises UsageError where a file is no certificate or key."""
    for path, what in ((options.ca, "certificates"), (options.cert, "a certificate")):
        if b"-----BEGIN CERTIFICATE" not in (_read(path, what) or b"-----BEGIN CERTIFICATE"):
            raise UsageError(f"{path} has no certificate in PEM: expected {what}")
    try:
        context = ssl.create_default_context(cafile=_trusted(options))
    except ssl.SSLError as error:
        raise UsageError(f"{options.ca} cannot be used: {error.reason}") from None
    if options.cert is not None:
        try:
            context.load_cert_chain(options.cert, options.key)
        except (OSError, ssl.SSLError) as error:
            why = getattr(error, "reason", None) or error
            raise UsageError(
                f"{options.cert} and {options.key} cannot be used together: {why}"
            ) from None
    return context


async def _is_let_in(reader: asyncio.StreamReader) -> bool:
    """Whether a server goes on after the handshake; in TLS 1.3 it looks at certificates then."""
    try:
        return await asyncio.wait_for(reader.read(1), 0.5) != b""
    except TimeoutError:
        return True
    except OSError:  # SSLError among them
        return False


async def _speaks_tls(target: Target) -> bool:
    """Whether a handshake comes about, whoever it is with."""
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    try:
        opened = asyncio.open_connection(
            target.host.strip("[]"), target.port, ssl=anybody, ssl_handshake_timeout=2
        )
        _, writer = await asyncio.wait_for(opened, 3)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def _answer(call: Any) -> Any:
    return await call


def refusal(target: Target, error: grpc.aio.AioRpcError) -> ServerError:
    """What a refusal for good means, in words."""
    what = (error.details() or error.code().name).rstrip(". ")
    advice = {
        grpc.StatusCode.UNAUTHENTICATED: "Give the server's token: --token-file",
        grpc.StatusCode.FAILED_PRECONDITION: "Give client and server the same exported folder",
        grpc.StatusCode.NOT_FOUND: "Give client and server the same exported folder",
    }.get(error.code(), "")
    if "--token-file" in what or "exported folder" in what:
        advice = ""
    return ServerError(f"{target.address} refuses: {what}. {advice}".rstrip(". ") + ".")


def _read(path: Path | None, what: str) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; expected {what} as PEM") from None
