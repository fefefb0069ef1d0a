"""The edge client against a server that is not Convoy's: MLServer, with ONNX Runtime.

    python3 -m venv foreign
    foreign/bin/pip install mlserver==1.7.1 onnxruntime==1.32.0
    python benchmarks/split_foreign.py --python foreign/bin/python [--batch-size 1,32] [--rounds 5]

A small network is trained on the digits and exported, cut at pool1. Both servers have it at once,
on one thread each, and are asked one after the other; all 360 test pictures go through in each
round. Labels have to be those of the edge alone, without a fallback; ways that are not float32
have to be given up with a notice. Images/s are those of a stream (the median of the rounds), the
latency that of one batch at a time (the median of all).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter, sleep
from typing import Any

import grpc
import numpy as np
import torch
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from common import write
from convoy.datasets import open_dataset
from convoy.split.client import AsyncClient
from convoy.split.making.images import pixels_of
from convoy.split.manifest import Manifest, load
from convoy.split.messages import PLAIN

NETWORK, CUT = "chavan:3-64-128-10", "pool1"
START_S = 120.0
PATIENT: dict[str, Any] = {"connect_s": 30, "deadline_s": 30, "accuracy_within": 100}
RUNTIME = '''"""ONNX Runtime under MLServer: whatever it is asked, as a tensor."""

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Onnx(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        tensors = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        names = [output.name for output in self._session.get_outputs()]
        found = zip(names, self._session.run(names, tensors))
        return InferenceResponse(
            model_name=self.name,
            model_version=self.version,
            outputs=[NumpyCodec.encode_output(name, array) for name, array in found],
        )
'''
START = '''"""MLServer, until whoever started it is gone."""

import ctypes
import os
import signal
import sys

from mlserver.cli import main

ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv.pop(1)):
    sys.exit(1)
main()
'''


def convoy(*arguments: str) -> list[str]:
    """A command that ends when this process does."""
    return [sys.executable, "-m", "convoy.split.fated", str(os.getpid()), *arguments]


def export(folder: Path) -> Path:
    """Train the network, cut it, and return the exported folder."""
    train = ("train", "--network", NETWORK, "--data", "digits", "--epochs", "5", "--json")
    cut = ("split", "export", "run", "--cut", CUT, "--out", "exported")
    for command in ((*train, "--strategy", "single", "--out", "run"), cut):
        subprocess.run(convoy(*command), cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder / "exported"


def free_ports(count: int) -> list[int]:
    """Ports that nobody has; MLServer cannot say which one it has taken of its own."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]


def models_of(manifest: Manifest) -> dict[str, str]:
    """Files of what a cloud serves, by their models' names."""
    (variant,) = manifest.variants
    return {
        variant.model: variant.whole.file,
        **{entry.model: entry.cloud.file for entry in variant.cuts},
    }


@contextlib.contextmanager
def running(command: list[str], **given: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the block."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **given)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def mlserver(python: Path, exported: Path, folder: Path) -> Iterator[str]:
    """MLServer with the exported models; where it listens."""
    grpc_port, http_port, metrics_port = free_ports(3)
    settings = {
        "host": "127.0.0.1",
        "grpc_port": grpc_port,
        "http_port": http_port,
        "metrics_port": metrics_port,
        "metrics_dir": str(folder),
        "parallel_workers": 0,
        "debug": False,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "onnx_runtime.py").write_text(RUNTIME)
    (folder / "start.py").write_text(START)
    for name, file in models_of(load(exported)).items():
        (folder / name).mkdir()
        of_one = {
            "name": name,
            "implementation": "onnx_runtime.Onnx",
            "parameters": {"uri": str(exported / file), "version": "1"},
        }
        (folder / name / "model-settings.json").write_text(json.dumps(of_one))
    command = [str(python), "start.py", str(os.getpid()), "start", "."]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with (
        (folder / "log").open("w") as log,
        running(command, cwd=folder, env=environment, stderr=log) as process,
    ):
        address = f"127.0.0.1:{grpc_port}"
        try:
            wait_for(process, address, list(models_of(load(exported))))
        except SystemExit as error:
            raise SystemExit(f"{error}\n{(folder / 'log').read_text()[-2000:]}") from None
        yield address


def wait_for(process: subprocess.Popen[str], address: str, models: list[str]) -> None:
    """Until all models are there: MLServer says that it is ready before it has looked."""
    until = monotonic() + START_S
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        while models:
            if process.poll() is not None or monotonic() > until:
                raise SystemExit("MLServer has not started")
            try:
                ask = pb.ModelReadyRequest(name=models[0], version="1")
                if stub.ModelReady(ask, timeout=5).ready:
                    del models[0]
            except grpc.RpcError:
                sleep(0.2)


@contextlib.contextmanager
def ours(exported: Path) -> Iterator[str]:
    """`convoy split serve`; where it listens."""
    serve = ("split", "serve", str(exported), "--quiet", "--threads", "1")
    with running(convoy(*serve, "--port", "0", "--http-port", "0")) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["grpc"]


def who(address: str) -> tuple[str, str]:
    """A server's name and version, as it says."""
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        found = stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=30)
        return found.name, found.version


async def through(
    exported: Path, address: str | None, pictures: Any, size: int, way: str, rounds: int
) -> dict[str, Any]:
    """Scores of all pictures, images/s and latency."""
    server = f"grpc://{address}" if address else None
    rates, latencies = [], []
    async with AsyncClient(
        exported, server, way=way, batch_size=size, fallback=False, **PATIENT
    ) as client:
        for _ in range(rounds):
            began = perf_counter()
            results = [result async for result in client.stream(pictures)]
            rates.append(len(results) / (perf_counter() - began))
            for first in range(0, len(pictures) // size * size, size):
                batch = pictures[first : first + size]
                latencies += [result.latency_s async for result in client.stream(batch)]
        if client.summary.errors or set(client.summary.by_way) != {way}:
            why = next(result.error for result in results if result.error)
            raise SystemExit(f"{way} by {address}: {client.summary.as_json()}: {why}")
    scores = np.stack([result.scores for result in results])
    return {"scores": scores, "rate": median(rates), "p50_ms": 1e3 * median(latencies)}


async def notices(exported: Path, address: str) -> str:
    """What the client says of a server when it meets it."""
    async with AsyncClient(exported, f"grpc://{address}", **PATIENT) as client:
        return " ".join(client.notices)


def names_of_ways(exported: Path) -> tuple[list[str], list[str]]:
    """Those of float32, and the others."""
    with_codec = [way.name for way in AsyncClient(exported, None, **PATIENT).ways.all if way.codec]
    plain = [name for name in with_codec if name.endswith(f"/{PLAIN}")]
    return plain, [name for name in with_codec if name not in plain]


def measure(
    exported: Path, addresses: list[str], sizes: list[int], rounds: int
) -> list[dict[str, Any]]:
    """A row for each server, way and batch size; the edge alone first."""
    test, by = open_dataset("digits").test, load(exported).preprocessing
    assert by is not None
    pictures = pixels_of(test.batch(torch.arange(len(test)))[0].numpy(), by)
    plain, _ = names_of_ways(exported)
    rows = []
    for size in sizes:
        found = asyncio.run(through(exported, None, pictures, size, "edge", rounds))
        alone = found["scores"]
        rows.append(row(("none", ""), "edge", size, found, alone))
        for way in plain:
            for address in addresses:
                found = asyncio.run(through(exported, address, pictures, size, way, rounds))
                rows.append(row(who(address), way, size, found, alone))
    return rows


def row(
    server: tuple[str, str], way: str, size: int, found: dict[str, Any], alone: Any
) -> dict[str, Any]:
    """One of the table."""
    agree = int((found["scores"].argmax(1) == alone.argmax(1)).sum())
    return {
        "server": " ".join(server).strip(),
        "way": way,
        "batch size": size,
        "pictures": len(alone),
        "labels as on the edge": agree,
        "logits differ by at most": float(abs(found["scores"] - alone).max()),
        "images/s": found["rate"],
        "latency p50 ms": found["p50_ms"],
    }


def main() -> None:
    """Both servers, every float32 way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, required=True, help="where MLServer is installed")
    parser.add_argument("--batch-size", default="1,32")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sizes = [int(text) for text in options.batch_size.split(",")]
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        exported, folder = export(Path(name)), Path(name) / "mlserver"
        folder.mkdir()
        theirs = stack.enter_context(mlserver(options.python.absolute(), exported, folder))
        here = stack.enter_context(ours(exported))
        said, (_, others) = asyncio.run(notices(exported, theirs)), names_of_ways(exported)
        missing = [way for way in others if way not in said]
        if missing or PLAIN in said:
            raise SystemExit(f"of {', '.join(missing)} nothing is said: {said!r}")
        rows = measure(exported, [theirs, here], sizes, options.rounds)
    about = (
        f"The edge client with a server that is not Convoy's, over loopback: {NETWORK}, cut at "
        f"{CUT}, without a fallback. Given up with a notice, as MLServer does not take them: "
        f"{', '.join(others)}."
    )
    write("split_foreign", rows, about=about)
    if any(row["labels as on the edge"] != row["pictures"] for row in rows):
        raise SystemExit("labels are not those of the edge alone")


if __name__ == "__main__":
    main()
