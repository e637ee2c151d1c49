"""What a gateway tells whoever traces it: a span for each request, one for each try at a backend.

Knows no tracer: without one none of this is called. Next: telemetry.py.
"""

from collections.abc import Mapping
from typing import Protocol

from moestro.api.record import Record
from moestro.api.relay import Call
from moestro.gateway.upstream import Upstream


class Attempt(Protocol):
    """One backend's part of a request."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What tells the backend which trace it is part of."""

    def end(self, status: int | None = None, error: BaseException | None = None) -> None:
        """End it, by its HTTP status or what went wrong; does nothing the second time."""


class Span(Protocol):
    """One request, from its arrival to its answer's end."""

    def attempt(self, upstream: Upstream) -> Attempt:
        """Begin to ask a backend."""

    def end(self, record: Record) -> None:
        """End it."""


class Tracing(Protocol):
    """Whoever traces requests; nothing here waits or raises."""

    def begin(self, call: Call) -> Span:
        """Begin a request's span, within the client's trace if it names one."""
