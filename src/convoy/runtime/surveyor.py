"""What a device measures of itself and of its links, when asked: an actor beside no training.

surveyor.prepare(job)        data, network and optimizer, as a rank of a run builds them
surveyor.layouts(n)          seconds in each memory layout
surveyor.steps(orders)       whole steps at many batch sizes, for a time in which all devices
                             work, since that is how a run finds them
surveyor.alone(n)            the same at one size while the others rest
surveyor.state()             work on all tensors: an average with others, without them
surveyor.layers(), filters() how a step's time is spread over layers; parts of convolutions
surveyor.meet(), link(), all_reduces()
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from convoy.comm import Comm, Rehearsal, peer_loss
from convoy.datasets import augment
from convoy.interfaces import interface_of
from convoy.runtime.device_facts import describe_device
from convoy.runtime.formation import Job
from convoy.runtime.layer_timer import LayerTimes, time_layers
from convoy.runtime.layout import FORMATS, laid_out
from convoy.runtime.link_timer import time_all_reduces, time_link
from convoy.runtime.memory import keep_freed_memory
from convoy.runtime.part_timer import time_filters
from convoy.runtime.state_times import state_times
from convoy.runtime.step_statistics import PHASES, deciles, levelled, mean_of, smoothed
from convoy.runtime.training import Trainee
from convoy.strategies import Batch, Equipment
from convoy.strategies.replica import replicated

STRETCH_S = 0.1
"""How long one batch size is timed at a stretch: several periods of a CPU quota."""


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What `steps` is to do."""

    layout: str
    samples: tuple[int, ...]
    """Batch sizes to measure; the larger ones only if there is time for them."""
    seconds: float
    """How long to go on."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What `steps` found, by batch size."""

    samples: tuple[int, ...]
    seconds: dict[str, tuple[float, ...]]
    """Of each phase."""
    replica_s: tuple[float, ...]
    """What a replica that exchanges gradients takes more, in forward and backward."""
    variation: tuple[float, ...]


class Surveyor:
    """Made into an actor by the survey."""

    def __init__(self, address: str, device: str, num_threads: int) -> None:
        self._address, self._num_threads = address, num_threads
        self._device = torch.device(device)
        self._store: dist.TCPStore | None = None
        self._comm: Comm | None = None
        self._layout = "contiguous"
        self._plain: dict[nn.Module, type] = {}
        """Classes of the network's modules alone, and in a crew, while it is in both."""
        self._crewed: dict[nn.Module, type] = {}

    def prepare(self, job: Job) -> dict[str, Any]:
        """Build what a rank builds; says what the device is."""
        keep_freed_memory()
        os.environ["GLOO_SOCKET_IFNAME"] = interface_of(self._address)
        torch.set_num_threads(self._num_threads)
        self._trainee = Trainee(job, self._device, self._num_threads)
        for group in self._trainee.optimizer.param_groups:
            group["lr"] = 0.0  # all the work, and the same numbers every time
        return {
            "pid": os.getpid(),
            **describe_device(self._device),
        }

    def convolutions(self, layout: str) -> dict[str, str]:
        """By layer, the algorithms that are not torch's own in this layout."""
        return self._trainee.arrangement.algorithms(layout)

    def describe(self) -> dict[str, Any]:
        """What the device is, without a network."""
        return describe_device(self._device)

    def layouts(self, samples: int) -> dict[str, float]:
        """Seconds of forward and backward over `samples` in each layout."""
        found: dict[str, list[float]] = defaultdict(list)
        begun = time.perf_counter()
        for repeat in range(4):
            for layout in FORMATS:
                self._set_layout(layout)
                times = self._step(samples, self._trainee.model)
                if repeat:
                    found[layout].append(times["forward"] + times["backward"])
            if repeat and time.perf_counter() - begun > 2.0:
                break
        return {layout: min(times) for layout, times in found.items()}

    def steps(self, orders: Orders) -> Steps:
        """Go over the batch sizes again and again until the time is up."""
        self._set_layout(orders.layout)
        sizes = orders.samples
        if len(sizes) > 1 and sizes[0] == 1 and not self._learns_from_one():
            sizes = sizes[1:]
        begun = time.perf_counter()
        raw: dict[int, list[dict[str, float]]] = defaultdict(list)
        plain: list[dict[int, float]] = []
        crewed: list[dict[int, float]] = []
        with self._replica() as replica:
            affordable = self._try_out(sizes, replica, orders.seconds - 1.0)
            with_replica = affordable[::-2]  # what it costs is smooth: every other size will do
            while len(plain) < 2 or time.perf_counter() - begun < orders.seconds:
                plain.append({})
                crewed.append({})
                for size in affordable:
                    plain[-1][size] = self._stretch(size, self._trainee.model, raw[size])
                    if size in with_replica:
                        crewed[-1][size] = self._stretch(size, replica, [])
        seconds = levelled(plain)
        extra = {
            size: statistics.median(c[size] - p[size] for c, p in zip(crewed, plain, strict=True))
            for size in sorted(with_replica)
        }
        phases = {size: mean_of(raw[size]) for size in affordable}
        scale = {size: seconds[size] / sum(phases[size].values()) for size in affordable}
        normalises = any(isinstance(m, _BatchNorm) for m in self._trainee.model.modules())
        return Steps(
            samples=tuple(affordable),
            seconds={p: tuple(phases[s][p] * scale[s] for s in affordable) for p in PHASES},
            replica_s=smoothed(extra, affordable, per_sample=normalises),
            variation=deciles([raw[size] for size in affordable]),
        )

    def _try_out(self, sizes: Sequence[int], replica: nn.Module, seconds: float) -> list[int]:
        """Take steps of rising size, as warm-up, as far as two more rounds of them have time.

        Half of the largest has it in any case, with a quarter and the smallest: from a few samples
        it cannot be foreseen what many take.
        """
        begun = time.perf_counter()
        affordable: list[int] = []
        last = spent = 0.0
        for size in sizes:
            ahead = last * size / affordable[-1] if affordable else 0.0
            left = seconds - (time.perf_counter() - begun)
            if affordable and 3 * (spent + 2 * ahead) > left:
                break
            affordable.append(size)
            self._step(size, replica)
            last = sum(self._step(size, self._trainee.model).values())
            spent += 2 * max(last, STRETCH_S)
        quarters = sizes[-4:]
        least = sorted({sizes[0], quarters[0], quarters[min(1, len(quarters) - 1)]})
        if affordable[-1] >= least[-1]:
            return affordable
        for size in least:
            if size > affordable[-1]:
                self._step(size, replica)
                self._step(size, self._trainee.model)
        return least

    def _learns_from_one(self) -> bool:
        """Whether a batch may be one sample: batch normalisation may then have no variance."""
        try:
            self._step(1, self._trainee.model)
        except ValueError:
            return False
        return True

    def alone(self, samples: int, seconds: float) -> float:
        """Seconds of a whole step of `samples`; the first warms up if there is time for more."""
        begun = time.perf_counter()
        found = [self._step(samples, self._trainee.model)]
        if time.perf_counter() - begun < seconds:
            found.clear()
        while not found or time.perf_counter() - begun < seconds:
            self._stretch(samples, self._trainee.model, found)
        return sum(mean_of(found).values())

    def state(self, seconds: float) -> dict[str, float]:
        """Seconds of averages and the like of all tensors; see `state_times`."""
        return state_times(self._trainee, self._device, seconds)

    def layers(self, sizes: Sequence[int], seconds: float) -> dict[str, Any]:
        """Seconds of each layer forward and backward, by batch size."""
        forward: dict[str, list[float]] = defaultdict(list)
        backward: dict[str, list[float]] = defaultdict(list)
        for size in sizes:
            batch = self._batch(size)
            loss = partial(self._trainee.loss, batch=batch)
            found: list[LayerTimes] = []
            begun = time.perf_counter()
            while not found or time.perf_counter() - begun < seconds / len(sizes):
                found.append(time_layers(self._trainee.model, self._device, loss))
                self._trainee.optimizer.zero_grad(set_to_none=True)
            for name in found[0].forward_s:
                forward[name].append(statistics.fmean(f.forward_s[name] for f in found))
                backward[name].append(statistics.fmean(f.backward_s.get(name, 0.0) for f in found))
        names = [name for name in forward if name]
        return {n: (tuple(forward[n]), tuple(backward[n])) for n in names}

    def filters(self, samples: int, seconds: float) -> dict[str, dict[str, float]]:
        """Times of parts of each convolution's filters, relative to all of them."""
        batch = self._batch(samples)
        return time_filters(self._trainee.model, batch.inputs, self._trainee.autocast, seconds)

    def open_store(self) -> int:
        """Start the store at which the devices meet; returns its port."""
        self._store = dist.TCPStore(self._address, 0, is_master=True, wait_for_workers=False)
        return int(self._store.port)

    def meet(self, rank: int, world_size: int, address: str, port: int, timeout_s: float) -> None:
        """Form a group with the other devices."""
        if world_size == 1:
            return
        store = self._store
        with peer_loss():
            if store is None:
                timeout = timedelta(seconds=timeout_s)
                store = dist.TCPStore(address, port, is_master=False, timeout=timeout)
        self._store = store
        self._comm = Comm(rank=rank, world_size=world_size, store=store, timeout_s=timeout_s)

    def link(self, source: int, destination: int) -> dict[str, Any] | None:
        """Latency, bandwidth and how much that varies; None of a rank that has no part in it."""
        assert self._comm is not None
        return time_link(self._comm, source, destination)

    def all_reduces(self, sizes: Sequence[int], repeats: Sequence[int]) -> list[dict[str, Any]]:
        """Seconds of each and this rank's CPU time, by payload bytes."""
        assert self._comm is not None
        return time_all_reduces(self._comm, sizes, repeats)

    def part(self) -> None:
        """Leave the group."""
        if self._comm is not None:
            self._comm.close()

    def _set_layout(self, layout: str) -> None:
        self._layout = layout
        self._trainee.arrangement.lay_out(layout)

    def _batch(self, size: int) -> Batch:
        trainee = self._trainee
        indices = torch.arange(size) % len(trainee.data.train)
        inputs, targets = trainee.fetch(indices)
        if trainee.job.settings.augment == "flip-crop":
            draws = augment.draw(size, torch.Generator().manual_seed(0))
            inputs = augment.flip_crop(inputs, draws.to(self._device))
        return Batch(
            step=0,
            inputs=laid_out(inputs, self._layout),
            targets=targets,
            samples=size,
            step_samples=size,
            evaluates=False,
            ends_run=False,
        )

    def _stretch(self, size: int, model: nn.Module, into: list[dict[str, float]]) -> float:
        """Steps of one size in a row; their mean seconds."""
        begun = time.perf_counter()
        totals = []
        while True:
            times = self._step(size, model)
            into.append(times)
            totals.append(sum(times.values()))
            if time.perf_counter() - begun > STRETCH_S:
                return statistics.fmean(totals)

    def _step(self, size: int, model: nn.Module) -> dict[str, float]:
        """One training step as a run does it; seconds of its phases."""
        trainee = self._trainee
        _turn_into(self._plain if model is trainee.model else self._crewed)
        marks = [time.perf_counter()]

        def mark() -> None:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            marks.append(time.perf_counter())

        batch = self._batch(size)
        mark()
        loss_sum = trainee.loss(model, batch)
        mark()
        (loss_sum / size).backward()
        mark()
        float(loss_sum.detach())
        trainee.optimizer.step()
        trainee.optimizer.zero_grad(set_to_none=True)
        for buffer in trainee.model.buffers():
            buffer.clone()  # a commit keeps them
        mark()
        return {p: b - a for p, a, b in zip(PHASES, marks, marks[1:], strict=False)}

    @contextlib.contextmanager
    def _replica(self) -> Iterator[nn.Module]:
        """The network as a rank of `data` has it, in a crew of two of which the other is silent."""
        trainee = self._trainee
        self._plain = {module: module.__class__ for module in trainee.model.modules()}
        equipment = Equipment(
            comm=Rehearsal(2),
            device=self._device,
            model=trainee.model,
            optimizer=trainee.optimizer,
            example=self._batch(2),
            loss=trainee.loss,
        )
        try:
            with replicated(equipment) as replica:
                self._crewed = {module: module.__class__ for module in trainee.model.modules()}
                yield replica
        finally:
            equipment.comm.close()
            _turn_into(self._plain)
            self._plain, self._crewed = {}, {}


def _turn_into(classes: dict[nn.Module, type]) -> None:
    """Give modules these classes: batch normalisation has another in a crew."""
    for module, own in classes.items():
        module.__class__ = own
