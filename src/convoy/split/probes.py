"""A harmless request of any size: how long it takes tells what the link carries."""

from __future__ import annotations

import secrets

from tritonclient.grpc import service_pb2 as pb

_FIELD = 2047
"""A field's number that the protocol does not use: servers skip what they do not know."""


def padded(size: int) -> pb.ServerLiveRequest:
    """A question whether the server lives, with that many bytes that nobody reads."""
    message = pb.ServerLiveRequest()
    message.MergeFromString(_varint(_FIELD << 3 | 2) + _varint(size) + secrets.token_bytes(size))
    return message


def _varint(number: int) -> bytes:
    """As protobuf writes whole numbers: seven bits in each byte, the lowest first."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
