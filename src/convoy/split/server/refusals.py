"""What clients are told when they do not get an answer."""

from __future__ import annotations

from enum import Enum

from convoy.errors import ServerError

LONGEST = 1000
"""Characters of a message: gRPC sends it in a header, of which there may be 8 kB."""


class Status(Enum):
    """How a request ended: gRPC's name for it, with HTTP's number."""

    OK = 200
    INVALID_ARGUMENT = 400
    UNAUTHENTICATED = 401
    NOT_FOUND = 404
    DEADLINE_EXCEEDED = 408
    FAILED_PRECONDITION = 412
    OUT_OF_RANGE = 413
    UNIMPLEMENTED = 415
    CANCELLED = 499
    INTERNAL = 500
    UNAVAILABLE = 503
    RESOURCE_EXHAUSTED = 5030
    """503 as well: come back later."""

    @property
    def http(self) -> int:
        """HTTP's number."""
        return 503 if self is Status.RESOURCE_EXHAUSTED else self.value


class RefusedError(ServerError):
    """A request that is not answered, and why."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message if len(message) <= LONGEST else message[: LONGEST - 1] + "…")
        self.status = status


def invalid(message: str) -> RefusedError:
    """The request is not one that can be answered."""
    return RefusedError(Status.INVALID_ARGUMENT, message)


def shown(value: object, most: int = 80) -> str:
    """What a client sent, in quotation marks if it is text, and short enough to be repeated."""
    text = repr(value[: most + 1]) if isinstance(value, str | bytes) else str(value)
    return text if len(text) <= most + 2 else text[:most] + "…"
