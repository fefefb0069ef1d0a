"""What a server counts, for Prometheus."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = tuple(step * 10.0**power for power in range(-4, 2) for step in (1, 2.5, 5))
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Those of one model's requests over one protocol; to look one up by its labels takes longer
    than to count."""

    images: Counter
    received: Counter
    request_s: Histogram
    queue_s: Histogram
    decoding_s: Histogram
    computing_s: Histogram


class Metrics:
    """One server's figures; labels take only names of models that are served."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        both, model = ("protocol", "model"), ("model",)
        self.requests = Counter(
            "convoy_split_requests",
            "Requests for an inference that have ended.",
            ("protocol", "model", "status"),
            registry=self.registry,
        )
        self.images = self._counter("images", "Images of requests that were answered.", model)
        self.received = self._counter("received_bytes", "Bytes of requests, as they came.", both)
        self.request_s = self._histogram("request", "From arrival to answer.", both)
        self.queue_s = self._histogram("queue", "Waiting for others and for the network.", model)
        self.decoding_s = self._histogram("decoding", "Making the network's input.", model)
        self.computing_s = self._histogram("computing", "Running the batch.", model)
        self.batch_images = Histogram(
            "convoy_split_batch_images",
            "Images that were computed together.",
            model,
            buckets=IMAGES,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "convoy_split_in_flight_requests",
            "Requests that are here and not answered.",
            registry=self.registry,
        )
        self.ready = Gauge(
            "convoy_split_ready",
            "1 where new requests are taken; 0 while draining.",
            registry=self.registry,
        )

        self.of = lru_cache(maxsize=None)(self._of)
        self.ended = lru_cache(maxsize=None)(self.requests.labels)

    def _of(self, protocol: str, model: str) -> Figures:
        return Figures(
            images=self.images.labels(model),
            received=self.received.labels(protocol, model),
            request_s=self.request_s.labels(protocol, model),
            queue_s=self.queue_s.labels(model),
            decoding_s=self.decoding_s.labels(model),
            computing_s=self.computing_s.labels(model),
        )

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)

    def _counter(self, name: str, about: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"convoy_split_{name}", about, labels, registry=self.registry)

    def _histogram(self, name: str, about: str, labels: tuple[str, ...]) -> Histogram:
        name = f"convoy_split_{name}_seconds"
        return Histogram(name, about, labels, buckets=SECONDS, registry=self.registry)
