"""Memory by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest

from convoy.cost.layers import LayerSize, NetworkFacts, facts_of
from convoy.cost.memory import PROCESS_BYTES, peak_bytes
from convoy.cost.optimizers import OPTIMIZER_STATES
from convoy.networks import build
from convoy.runtime.settings import OPTIMIZERS

FACTS = NetworkFacts(
    num_parameters=1000,
    num_buffers=10,
    layers=(
        LayerSize(name="a", parameters=(600,), activations=50),
        LayerSize(name="b", parameters=(400,), activations=20),
    ),
)


@pytest.mark.parametrize(
    ("options", "elements"),
    [
        # parameters, gradients, momentum; buffers; (50 + 20 and a gradient of 50) of 8 samples
        ({"optimizer_states": 1}, 3 * 1000 + 2 * 10 + 8 * 120),
        ({"optimizer_states": 2}, 4 * 1000 + 2 * 10 + 8 * 120),
        ({"optimizer_states": 1, "copies_state": True}, 5 * 1000 + 2 * 10 + 8 * 120),
        ({"optimizer_states": 2, "copies_state": True}, 7 * 1000 + 2 * 10 + 8 * 120),
    ],
)
@pytest.mark.parametrize("element_bytes", [4, 8])
def test_by_hand(options: dict[str, object], elements: int, element_bytes: int) -> None:
    found = peak_bytes(FACTS, 8, element_bytes=element_bytes, **options)  # type: ignore[arg-type]
    assert found - PROCESS_BYTES == elements * element_bytes


def test_of_a_network_that_nobody_has_traced_its_state_is_known() -> None:
    facts = NetworkFacts(num_parameters=1000, num_buffers=0)
    assert peak_bytes(facts, 10**6, optimizer_states=1) == PROCESS_BYTES + 4 * 3 * 1000


def test_a_large_batch_is_mostly_outputs() -> None:
    facts = facts_of(build("vgg16", input_shape=(3, 32, 32), num_classes=10), (3, 32, 32))
    one, many = (peak_bytes(facts, n, optimizer_states=1) for n in (1, 101))
    outputs = [layer.activations for layer in facts.layers]
    assert many - one == 100 * 4 * (sum(outputs) + max(outputs))


def test_every_optimizer_is_known() -> None:
    assert set(OPTIMIZER_STATES) == set(OPTIMIZERS)


MEASURES = """
import re, torch
from pathlib import Path
from torch.nn.functional import cross_entropy
from convoy.networks import build
torch.set_num_threads(1)
warm = build("lenet", input_shape=(1, 28, 28), num_classes=10)
cross_entropy(warm(torch.randn(2, 1, 28, 28)), torch.zeros(2, dtype=torch.int64)).backward()
def kilobytes(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = kilobytes("VmRSS")
model = build("vgg16", input_shape=(3, 32, 32), num_classes=10)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
for _ in range(2):
    loss = cross_entropy(model(torch.randn(48, 3, 32, 32)), torch.zeros(48, dtype=torch.int64))
    loss.backward()
    optimizer.step()
print(1024 * (kilobytes("VmHWM") - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_takes_about_as_much() -> None:
    """Of the memory that the system gives it, between its imports and its second step."""
    facts = facts_of(build("vgg16", input_shape=(3, 32, 32), num_classes=10), (3, 32, 32))
    done = subprocess.run(
        [sys.executable, "-c", MEASURES], stdout=subprocess.PIPE, text=True, check=True, timeout=120
    )
    estimate = peak_bytes(facts, 48, optimizer_states=1) - PROCESS_BYTES
    assert int(done.stdout) == pytest.approx(estimate, rel=0.3)
