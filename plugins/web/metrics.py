"""What Prometheus asks for."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from medqa.audit import Store
from medqa.queue import counts

__all__ = ["Metrics"]

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counts of one service, and the queue's as it stands when asked."""

    def __init__(self, store: Store) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "medqa_web_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "medqa_web_request_seconds",
            "Time from the first byte of a request to the last of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._registry.register(_Jobs(store))

    def note(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request; the method only where it is one, as labels must not be without end."""
        self._requests.labels(method if method in _METHODS else "-", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return the figures in Prometheus' text format; raises StoreError."""
        return generate_latest(self._registry)


class _Jobs(Collector):
    """How many jobs are in each state."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Say nothing of the database before it is asked."""
        return []

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Ask the database."""
        family = GaugeMetricFamily("medqa_jobs", "Jobs in the queue.", labels=("state",))
        for state, number in counts(self._store).items():
            family.add_metric((state,), number)
        return [family]
