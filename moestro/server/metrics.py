"""GET /metrics for Prometheus: vLLM's names under `moestro:`, and what HTTP requests came to.

Each app has a registry of its own. Knows HTTP paths, not models. Next: observed.py, gauges.py.
"""

import time
from collections.abc import Callable
from functools import cache

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import choose_encoder
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moestro.server.openapi import ERRORS

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# One label for all that is nobody's path or method, so that scanners cannot fill the memory.
_OTHER = "other"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


def routes(registry: CollectorRegistry) -> APIRouter:
    """Build the route that shows everything in a registry."""
    paths = APIRouter()

    @paths.get(
        "/metrics",
        tags=["server"],
        response_class=Response,
        responses=ERRORS | {200: {"content": {"text/plain": {}}}},
    )
    async def show_metrics(request: Request) -> Response:
        """Show counters, gauges and histograms in Prometheus's text format."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), media_type=content_type)

    return paths


class HttpMetrics:
    """Counts requests by method, path template and status, and measures how long each took."""

    def __init__(
        self,
        app: ASGIApp,
        registry: CollectorRegistry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._clock = clock
        self._requests = Counter(
            "moestro:http_requests",
            "HTTP requests.",
            ("method", "path", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "moestro:http_request_duration_seconds",
            "Seconds from a request's head to its answer's end.",
            ("method", "path"),
            registry=registry,
            buckets=_SECONDS,
        )
        # Of labels that were seen: looking them up takes longer than counting.
        self._count = cache(Counter.labels)
        self._measure = cache(Histogram.labels)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, and count."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # What never gets an answer is the server's fault, unless the client went away first.
        status = 500
        began_at = self._clock()

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_counted)
        finally:
            method = scope["method"] if scope["method"] in METHODS else _OTHER
            path = getattr(scope.get("route"), "path", _OTHER)
            self._count(self._requests, method, path, status).inc()
            self._measure(self._seconds, method, path).observe(self._clock() - began_at)
