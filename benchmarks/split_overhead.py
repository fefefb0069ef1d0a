"""What a call to `convoy split serve` takes beyond the network's own time.

    python benchmarks/split_overhead.py --calls 2000

8 kB of float32 go to a network that computes almost nothing, over loopback, one call after another:
over gRPC and HTTP, with and without TLS and a token. Overhead is the round trip less the network's
run, which the server's own figures tell (convoy_split_computing_seconds).
"""

from __future__ import annotations

import argparse
import http.client
import json
import ssl
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import grpc
import numpy as np
import trustme
from tritonclient.grpc import service_pb2_grpc

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.split.server import tiny
from tests.split.server.running import plain

from common import write
from convoy.split.manifest import NAME, Manifest, TensorSpec, Variant, to_json

SHAPE, CLASSES = (2048,), 10
"""8 KiB of float32."""
HEAD = "Inference-Header-Content-Length"


def export(folder: Path) -> None:
    """A product of 2048 numbers with 2048 x 10."""
    weights = np.ones((SHAPE[0], CLASSES), np.float32)
    data = tiny.network(SHAPE, weights, ("input", "output"))
    manifest = Manifest(
        network="nothing",
        classes=tuple(map(str, range(CLASSES))),
        input=TensorSpec(name="input", shape=SHAPE),
        output=TensorSpec(name="output", shape=(CLASSES,)),
        preprocessing=None,
        variants=(
            Variant(
                name="",
                network="nothing",
                model="full",
                whole=tiny.write(folder, "full/1/full.onnx", data),
                codecs=(),
            ),
        ),
    )
    (folder / NAME).write_text(to_json(manifest))


class Secrets:
    """Certificates and a token."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        made = authority.issue_cert("127.0.0.1")
        self.ca, self.cert, self.key = (folder / name for name in ("ca", "cert", "key"))
        authority.cert_pem.write_to_path(self.ca)
        made.cert_chain_pems[0].write_to_path(self.cert)
        made.private_key_pem.write_to_path(self.key)
        self.token, self.token_file = "0123456789abcdef" * 2, folder / "token"
        self.token_file.write_text(self.token)
        for path in (self.key, self.token_file):
            path.chmod(0o600)

    def options(self) -> list[str]:
        """The server's."""
        pairs = (
            ("--tls-cert", self.cert),
            ("--tls-key", self.key),
            ("--token-file", self.token_file),
        )
        return [word for name, path in pairs for word in (name, str(path))]


@contextmanager
def server(folder: Path, *options: str) -> Iterator[dict[str, Any]]:
    """A server process; the line that it prints."""
    command = [sys.executable, "-m", "convoy", "split", "serve", str(folder), "--quiet"]
    process = subprocess.Popen(
        [*command, "--port", "0", "--http-port", "0", *options], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def caller(
    protocol: str, line: dict[str, Any], secrets: Secrets | None
) -> Iterator[Callable[[], object]]:
    """A function that makes one call, on a connection that stays."""
    one = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)
    if protocol == "grpc":
        metadata = (("authorization", f"Bearer {secrets.token}"),) if secrets else ()
        channel = (
            grpc.secure_channel(line["grpc"], grpc.ssl_channel_credentials(secrets.ca.read_bytes()))
            if secrets
            else grpc.insecure_channel(line["grpc"])
        )
        message = plain(one)
        with channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            yield lambda: stub.ModelInfer(message, metadata=metadata, timeout=60)
        return
    tensor = {"name": "input", "shape": [1, *SHAPE], "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": one.nbytes}
    parameters = {"binary_data_output": True}
    head = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    headers = {HEAD: str(len(head))}
    if secrets:
        headers["Authorization"] = f"Bearer {secrets.token}"
        context = ssl.create_default_context(cafile=secrets.ca)
        connection = http.client.HTTPSConnection(line["http"], context=context, timeout=60)
    else:
        connection = http.client.HTTPConnection(line["http"], timeout=60)

    def call() -> None:
        connection.request("POST", "/v2/models/full/infer", head + one.tobytes(), headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise SystemExit(body.decode())

    try:
        yield call
    finally:
        connection.close()


def computing_s(line: dict[str, Any], secrets: Secrets | None) -> tuple[float, int]:
    """The network's seconds so far, and its runs."""
    context = ssl.create_default_context(cafile=secrets.ca) if secrets else None
    connection = (
        http.client.HTTPSConnection(line["http"], context=context)
        if secrets
        else http.client.HTTPConnection(line["http"])
    )
    headers = {"Authorization": f"Bearer {secrets.token}"} if secrets else {}
    connection.request("GET", "/metrics", headers=headers)
    text = connection.getresponse().read().decode()
    connection.close()
    name = 'convoy_split_computing_seconds_%s{model="full"}'
    found = {key: value for key, _, value in (row.rpartition(" ") for row in text.splitlines())}
    return float(found.get(name % "sum", 0)), int(float(found.get(name % "count", 0)))


def measure(
    protocol: str, line: dict[str, Any], secrets: Secrets | None, window: str, calls: int
) -> dict[str, Any]:
    """One row."""
    with caller(protocol, line, secrets) as call:
        for _ in range(max(calls // 10, 10)):
            call()
        before = computing_s(line, secrets)
        trips = []
        for _ in range(calls):
            began = perf_counter()
            call()
            trips.append(perf_counter() - began)
        after = computing_s(line, secrets)
    run_s = (after[0] - before[0]) / (after[1] - before[1])
    cuts = statistics.quantiles(trips, n=100)
    return {
        "protocol": protocol,
        "TLS and token": "yes" if secrets else "no",
        "batch window": window,
        "calls": calls,
        "p50 ms": 1e3 * cuts[49],
        "p99 ms": 1e3 * cuts[98],
        "run ms": 1e3 * run_s,
        "overhead p50 ms": 1e3 * (cuts[49] - run_s),
        "overhead p99 ms": 1e3 * (cuts[98] - run_s),
    }


def main() -> None:
    """Every protocol, with and without TLS, with and without a window."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000)
    calls = parser.parse_args().calls
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder, secrets = Path(name) / "exported", Secrets(Path(name))
        export(folder)
        for window in ("0", "2ms"):
            for how in (None, secrets):
                options = ["--batch-window", window, *(how.options() if how else [])]
                with server(folder, *options) as line:
                    rows += [measure(p, line, how, window, calls) for p in ("grpc", "http")]
    about = (
        "Round trips of one client over loopback: 8 KiB of float32 to a network that computes "
        "almost nothing. Overhead is the round trip less the mean time of the network's runs; "
        "with a window it contains the window."
    )
    write("split_overhead", rows, about=about)


if __name__ == "__main__":
    main()
