"""What a device is, by its own account."""

from __future__ import annotations

from typing import Any

import psutil
import torch

from convoy.hardware import processor_name


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
