"""What a device is, by its own account."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path
from typing import Any

import psutil
import torch


def describe_device(device: torch.device) -> dict[str, Any]:
    """A device's hardware and its memory, and what it runs."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        hardware, memory = str(properties.name), int(properties.total_memory)
    else:
        hardware, memory = processor_name(), int(psutil.virtual_memory().total)
    return {
        "hardware": hardware,
        "memory_bytes": memory,
        "versions": {"torch": torch.__version__.partition("+")[0]},
    }


def processor_name() -> str:
    """The processor's, as it calls itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
