"""What /metrics shows, in Prometheus's format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from tts_verifier.serve.dispatcher import Dispatcher
from tts_verifier.serve.limits import Memory
from tts_verifier.serve.processes.proxy import DispatcherProxy

_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics:
    """The figures of one server. Safe to share between threads."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        # Not the library's global one, which a second server in this process would share.
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tts_requests", "Requests by endpoint and status", ["endpoint", "status"],
            registry=self._registry,
        )  # fmt: skip
        self._pictures = Counter("tts_pictures", "Pictures verified", registry=self._registry)
        self._missing = Counter(
            "tts_missing", "Pictures without a reward (score) or a map (its name)", ["what"],
            registry=self._registry,
        )  # fmt: skip
        self._waits = Histogram(
            "tts_verdict_seconds", "From a picture's arrival to its verdict", buckets=_BUCKETS,
            registry=self._registry,
        )  # fmt: skip

    def watch(self, dispatcher: Dispatcher | DispatcherProxy, memory: Memory) -> None:
        """Shows what waits and what memory is taken, whenever somebody looks."""
        for name, words, value in (
            ("tts_waiting", "Pictures that wait or are in the verifier", lambda: dispatcher.size),
            ("tts_memory_bytes", "Bytes of requests under way", lambda: memory.held),
        ):
            Gauge(name, words, registry=self._registry).set_function(value)

    def answered(self, endpoint: str, status: int) -> None:
        """Counts a request."""
        self._requests.labels(endpoint, str(status)).inc()

    def verified(self, seconds: float) -> None:
        """Counts a picture, and the time that it took."""
        self._pictures.inc()
        self._waits.observe(seconds)

    def lacking(self, what: str, count: int) -> None:
        """Counts pictures whose verdict lacks something."""
        self._missing.labels(what).inc(count)

    def page(self) -> bytes:
        """Returns the page."""
        return generate_latest(self._registry)
