"""ONNX Runtime, as Convoy uses it: on the CPU, with a set number of threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from convoy.errors import ManifestError
from convoy.split.codecs import FloatArray


@dataclass(frozen=True)
class Session:
    """A model that is loaded: a single tensor in, a single tensor out."""

    runner: Any
    input: str
    output: str

    def __call__(self, batch: FloatArray) -> FloatArray:
        """float32 [n, ...] of float32 [n, ...]."""
        (result,) = self.runner.run([self.output], {self.input: batch})
        out: FloatArray = np.asarray(result, np.float32)
        return out


def load(model: bytes, name: str, *, threads: int = 1) -> Session:
    """Load a model.

    Args:
        model: an ONNX file's content.
        name: for errors.

    Raises:
        ManifestError: ONNX Runtime cannot, or it has several inputs or outputs.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        runner = onnxruntime.InferenceSession(
            model, sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its errors have no common base
        raise ManifestError(f"ONNX Runtime cannot load {name}: {error}") from None
    inputs, outputs = runner.get_inputs(), runner.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        raise ManifestError(
            f"{name} has {len(inputs)} inputs ({', '.join(i.name for i in inputs)}) and "
            f"{len(outputs)} outputs; expected one of each"
        )
    return Session(runner=runner, input=inputs[0].name, output=outputs[0].name)
