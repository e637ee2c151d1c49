"""What the gateway counts for Prometheus: models, backends, reasons and numbers, no text, no key.

Next: gateway.py.
"""

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Histogram

from moestro.api.record import Record

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class GatewayMetrics:
    """Counters of one gateway; without a registry they are counted for nobody."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self._requests = Counter(
            "moestro:gateway_requests",
            "Requests by who answered, why and how it ended.",
            ("model", "backend", "reason", "outcome", "status"),
            registry=registry,
        )
        self._attempts = Counter(
            "moestro:gateway_attempts", "Requests to backends.", ("model",), registry=registry
        )
        self._audits = Counter(
            "moestro:gateway_audits",
            "Answers asked for to check others; their tokens and dollars are counted with all.",
            ("model", "outcome"),
            registry=registry,
        )
        self._failovers = Counter(
            "moestro:gateway_failovers",
            "Streams that another backend went on with, by the one that broke off.",
            ("backend",),
            registry=registry,
        )
        self._lies = Counter(
            "moestro:gateway_other_model",
            "Answers for another model than was asked for.",
            ("backend",),
            registry=registry,
        )
        self._tokens = Counter(
            "moestro:gateway_tokens", "Tokens.", ("model", "kind"), registry=registry
        )
        self._dollars = Counter(
            "moestro:gateway_cost_usd", "Dollars.", ("model",), registry=registry
        )
        self._events = Counter(
            "moestro:gateway_stream_events",
            "Events with words that were relayed.",
            ("model",),
            registry=registry,
        )
        self._first = _histogram("first_seconds", "Seconds to an answer's beginning.", registry)
        # Of labels that were seen: looking them up takes longer than counting.
        self._count = cache(Counter.labels)
        self._measure = cache(Histogram.labels)
        self._whole = _histogram("request_seconds", "Seconds to an answer's end.", registry)

    def add(self, record: Record) -> None:
        """Count a request that has ended."""
        model = record.model
        if record.is_audit:
            self._count(self._audits, model, record.outcome).inc()
        else:
            labels = (model, record.backend, _kind_of(record), record.outcome, str(record.status))
            self._count(self._requests, *labels).inc()
        if record.num_attempts:
            self._count(self._attempts, model).inc(record.num_attempts)
        if not model:
            return
        self._count(self._tokens, model, "prompt").inc(record.prompt_tokens)
        self._count(self._tokens, model, "completion").inc(record.completion_tokens)
        self._count(self._dollars, model).inc(record.cost_usd)
        if record.is_audit:
            return
        self._measure(self._whole, model).observe(record.whole_s)
        if record.first_s is not None:
            self._measure(self._first, model).observe(record.first_s)

    def count_failover(self, backend: str) -> None:
        """Count a stream that another backend went on with."""
        self._failovers.labels(backend).inc()

    def count_lie(self, backend: str) -> None:
        """Count an answer for another model than was asked for."""
        self._lies.labels(backend).inc()

    def count_events(self, model: str, num: int) -> None:
        """Count a stream's events."""
        self._events.labels(model).inc(num)


def _histogram(name: str, text: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(
        f"moestro:gateway_{name}", text, ("model",), registry=registry, buckets=_SECONDS
    )


def _kind_of(record: Record) -> str:
    """Return a reason without the numbers that would make a series of every few requests."""
    first = record.reason.partition(";")[0]
    if first == "cache" or first.startswith("cascade") or record.digest is None:
        return first
    return "policy"
