"""Nothing that a client sends ends the server, or is an error of the server's."""

from __future__ import annotations

import numpy as np
import pytest

from . import tiny
from .malformed import KINDS, Asker, drawn
from .running import Running, call, document, infer, plain

EXPECTED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"}
EXPECTED |= {"closed", "waits", "HTTP/2"}
EXPECTED |= {"200", "400", "404", "405", "412", "413", "415"}


@pytest.mark.parametrize("kind", KINDS)
def test_malformed_requests(served: Running, kind: str) -> None:
    draw = np.random.default_rng(list(KINDS).index(kind))
    one = np.zeros((1, *tiny.PICTURE), np.float32)
    asker = Asker(served.addresses.grpc, served.addresses.http)
    try:
        statuses = {asker(drawn(kind, draw)) for _ in range(30)}
    finally:
        asker.close()
    assert statuses <= EXPECTED
    assert infer(served.addresses.grpc, plain(one)).outputs
    path = "/v2/models/full/infer"
    assert call(served.addresses.http, path, document(one))[0] == 200
    assert "unforeseen" not in served.lines.getvalue()
