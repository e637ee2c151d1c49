"""Spans of requests for OpenTelemetry, sent to a collector by OTLP over HTTP: only where asked for.

Names of attributes are those of the semantic conventions for HTTP and for generative AI; ours begin
with "moestro.". No prompt, no answer, no key, nobody's name. Imported by who has `moestro[otel]`
and a collector's address. Next: spans.py.
"""

from collections.abc import Mapping
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from moestro.api.record import Record
from moestro.api.relay import Call
from moestro.gateway.asked import KINDS
from moestro.gateway.config import TelemetryConfig
from moestro.gateway.faults import Fault
from moestro.gateway.upstream import Upstream

_PROPAGATOR = TraceContextTextMapPropagator()
_LONGEST_NAME = 100
# Names that the conventions have; what is about tokens is none of theirs.
_OPERATIONS = {
    "completion": "text_completion",
    "embeddings": "embeddings",
    "count": "count_tokens",
    "tokenize": "tokenize",
    "detokenize": "detokenize",
}


class OpenTelemetry:
    """A worker's spans on their way to a collector; what it cannot take in time is dropped."""

    def __init__(self, config: TelemetryConfig) -> None:
        exporter = OTLPSpanExporter(config.traces_url, headers=config.read_headers())
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": config.service}),
            # Who calls with a trace has decided already whether it is kept.
            sampler=ParentBased(TraceIdRatioBased(config.share)),
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("moestro.gateway")

    def begin(self, call: Call) -> "RequestSpan":
        """Begin a request's span, within the client's trace if it names one."""
        operation = _OPERATIONS.get(KINDS[call.path], "chat")
        span = self._tracer.start_span(
            operation,
            _PROPAGATOR.extract(call.headers),
            SpanKind.SERVER,
            {
                "http.request.method": "POST",
                "http.route": call.path,
                "gen_ai.operation.name": operation,
                "moestro.request_id": call.request_id,
            },
        )
        return RequestSpan(self._tracer, span, operation)

    def stop(self) -> None:
        """Send what waits, and end; takes as long as the collector does, some seconds at most."""
        self._provider.shutdown()


class RequestSpan:
    """One request's span."""

    def __init__(self, tracer: Tracer, span: Span, operation: str) -> None:
        self._tracer = tracer
        self._span = span
        self._operation = operation

    def attempt(self, upstream: Upstream) -> "AttemptSpan":
        """Begin to ask a backend."""
        address = urlsplit(upstream.config.address)
        span = self._tracer.start_span(
            f"{self._operation} {upstream.model}",
            set_span_in_context(self._span),
            SpanKind.CLIENT,
            {
                "gen_ai.operation.name": self._operation,
                "gen_ai.provider.name": upstream.dialect,
                "gen_ai.request.model": upstream.model,
                "server.address": address.hostname or "",
                "server.port": address.port or (443 if address.scheme == "https" else 80),
                "moestro.backend": upstream.name,
            },
        )
        return AttemptSpan(span)

    def end(self, record: Record) -> None:
        """End it."""
        asked = record.asked[:_LONGEST_NAME]
        self._span.update_name(f"{self._operation} {asked}")
        self._span.set_attributes(
            {
                "http.response.status_code": record.status,
                "gen_ai.request.model": asked,
                "gen_ai.request.stream": record.is_streamed,
                "gen_ai.response.model": record.model,
                "gen_ai.usage.input_tokens": record.prompt_tokens,
                "gen_ai.usage.output_tokens": record.completion_tokens,
                "moestro.reason": record.reason,
                "moestro.outcome": record.outcome,
                "moestro.attempts": record.num_attempts,
                "moestro.failovers": record.num_failovers,
                "moestro.cost_usd": record.cost_usd,
            }
        )
        if record.first_s is not None:
            self._span.set_attribute("gen_ai.response.time_to_first_chunk", record.first_s)
        # A caller's own mistake is no fault of a server's.
        if record.outcome == "failed" or record.status >= 500:
            self._span.set_attribute("error.type", str(record.status))
            self._span.set_status(Status(StatusCode.ERROR, record.error))
        self._span.end()


class AttemptSpan:
    """The span of one try at a backend."""

    def __init__(self, span: Span) -> None:
        self._span = span
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(span))
        self.headers: Mapping[str, str] = carrier

    def end(self, status: int | None = None, error: BaseException | None = None) -> None:
        """End it, by its HTTP status or what went wrong; does nothing the second time."""
        if not self._span.is_recording():
            return
        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
        if isinstance(error, Fault):
            self._span.set_attribute("error.type", error.kind)
            self._span.set_status(Status(StatusCode.ERROR, str(error)))
        elif error is not None:
            # The client went away, or another backend was faster.
            self._span.set_attribute("error.type", "cancelled")
        self._span.end()
