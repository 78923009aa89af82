"""What the server counts, in Prometheus's terms."""

from __future__ import annotations

import logging
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

logger = logging.getLogger(__name__)

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = tuple(2**power for power in range(6, 18))
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)


class Metrics:
    """The counters of one server.

    Args:
        registry: where they are kept; where None, one of their own, so that several servers can live in one process.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._registry = registry = registry or CollectorRegistry()
        self.requests = Counter("srm_requests", "Requests answered, 499 for a client that has gone", ["route", "status"], registry=registry)
        self.latency = Histogram(
            "srm_request_seconds", "From a request's headers to its answer's end", ["route"], buckets=_SECONDS, registry=registry
        )
        self._batch_rows = Histogram("srm_batch_rows", "Rows in a batch", buckets=_ROWS, registry=registry)
        self._batch_tokens = Histogram("srm_batch_tokens", "Tokens in a batch, shared prompts once", buckets=_TOKENS, registry=registry)
        self._batch_seconds = Histogram("srm_batch_seconds", "Run time of a batch", buckets=_SECONDS, registry=registry)
        self.dropped = Counter("srm_dropped_rows", "Rows taken out of the queue because their request was given up", registry=registry)
        self.model_errors = Counter("srm_model_errors", "Batches that failed with an error of the model", registry=registry)
        self._mended = Counter("srm_mended_samples", "Samples of OpenRLHF or slime not scored whole", ["reason"], registry=registry)
        self._seen: set[str] = set()
        self._queue = Gauge("srm_queue_rows", "Rows that wait for the model or are being encoded", registry=registry)

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Ask `length` for the queue's length whenever somebody looks."""
        self._queue.set_function(length)

    def observe_batch(self, num_rows: int, num_tokens: int, seconds: float) -> None:
        self._batch_rows.observe(num_rows)
        self._batch_tokens.observe(num_tokens)
        self._batch_seconds.observe(seconds)

    def mended(self, what: str, count: int) -> None:
        """Samples of OpenRLHF or slime were not scored whole; the log says so the first time."""
        self._mended.labels(what).inc(count)
        if what not in self._seen:
            self._seen.add(what)
            logger.warning("A sample of a policy cannot be scored whole: %s. /metrics counts them.", what)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)
