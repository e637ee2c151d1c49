"""The server: READ FIRST. Its routes, and what every request passes on the way to them.

Given a Backend, knows nothing else. Next: chat.py, exchange.py, errors.py.
"""

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from moestro.api.backend import Backend
from moestro.api.relay import Relay
from moestro.server import (
    chat,
    completions,
    docs,
    embeddings,
    errors,
    messages,
    metrics,
    responses,
    status,
    tokens,
)
from moestro.server.access import AccessLog
from moestro.server.bodies import BodyGuard
from moestro.server.clients import ClientTable
from moestro.server.config import ServerConfig
from moestro.server.gauges import BackendCollector
from moestro.server.keys import OPEN_PATHS, KeyGuard, KeyRing, Keys
from moestro.server.limits import Limits
from moestro.server.metrics import HttpMetrics
from moestro.server.observed import Observed
from moestro.server.refusal import DIALECTS
from moestro.server.relay import RelayRoutes

# What they show is the same everywhere, and a browser has no key to send.
_DOCS_PATHS = ("/docs", "/openapi.json")

# Of an answer from another origin a web page may read no other header of ours.
_EXPOSED_HEADERS = (
    "request-id",
    "retry-after",
    "x-moestro-attempts",
    "x-moestro-backend",
    "x-moestro-cache",
    "x-moestro-experts",
    "x-moestro-model",
    "x-moestro-reason",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
    "x-request-id",
)


class Application(FastAPI):
    """Routes, and before them what every request passes.

    What is answered there, as by the relay, never meets FastAPI's own layers, which take a tenth of
    the time of a whole answer that is passed on.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 (FastAPI's own)
        super().__init__(**options)
        self._first: ASGIApp = super().__call__

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        await self._first(scope, receive, send)

    def put_before(self, build: Callable[..., ASGIApp], **options: Any) -> None:  # noqa: ANN401
        """Let requests meet one more layer, before all that they met so far."""
        self._first = build(self._first, **options)


@dataclass(frozen=True, kw_only=True)
class Callers:
    """Who comes in, by their keys, and what several processes count of each together."""

    keys: KeyRing
    clients: ClientTable | None = None


def build_app(
    backend: Backend,
    config: ServerConfig | None = None,
    *,
    open_paths: Collection[str] = (),
    relay: Relay | None = None,
    registry: CollectorRegistry | None = None,
    shown: CollectorRegistry | None = None,
    callers: Callers | None = None,
) -> Application:
    """Build the application; it starts the backend when it starts, and stops it when it stops.

    `open_paths` need no key, like those of pages that ask for one themselves. What `relay` can pass
    on as it came does not reach the backend. `registry` is what /metrics shows, unless
    that is `shown`, which gathers several processes. `callers` are asked instead of the
    configuration's keys.
    """
    config = config or ServerConfig()
    callers = callers or Callers(keys=Keys(config.keys))
    registry = registry or CollectorRegistry()
    registry.register(BackendCollector(backend))
    observed = Observed(backend, registry)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await observed.start()
        yield
        await observed.stop(config.drain_s)

    app = Application(
        title="Moestro",
        description="OpenAI-compatible server for sparse Mixture-of-Experts language models.",
        version=version("moestro"),
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    errors.install(app, DIALECTS)
    for part in (completions, chat, responses, messages, embeddings, tokens, status):
        app.include_router(part.routes(observed))
    app.include_router(metrics.routes(shown or registry))
    app.include_router(docs.routes())
    if relay is not None:
        app.put_before(RelayRoutes, relay=relay)
    app.put_before(BodyGuard, config=config.bodies)
    app.put_before(
        Limits, config=config.limits, shared=callers.clients, check_room=backend.check_room
    )
    _guard(app, config, registry, open_paths, callers.keys)
    return app


def _guard(
    app: Application,
    config: ServerConfig,
    registry: CollectorRegistry,
    open_paths: Collection[str],
    keys: KeyRing,
) -> None:
    allowed = (*OPEN_PATHS, *_DOCS_PATHS, *open_paths)
    app.put_before(KeyGuard, keys=keys, open_paths=allowed)
    if config.cors_origins:
        app.put_before(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=_EXPOSED_HEADERS,
        )
    app.put_before(HttpMetrics, registry=registry)
    app.put_before(AccessLog)
