"""Spans of requests at a real receiver of OpenTelemetry's protocol; without one, nothing of it.

Next: test_failover.py.
"""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from moestro.errors import BackendError, ConfigError, UnknownModelError
from moestro.gateway.config import TelemetryConfig
from moestro.gateway.telemetry import OpenTelemetry
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.upstreams import (
    WORDS,
    Running,
    breaks,
    gateway_over,
    replies,
    reset,
    stall,
    well,
    whole_text,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
PARTS = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
SECRET = "the words of the prompt"


class Receiver(ThreadingHTTPServer):
    """Takes what is exported to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Span] = []
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def of(self, kind: int) -> list[Span]:
        return [span for span in self.spans if span.kind == kind]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        message = ExportTraceServiceRequest.FromString(body)
        self.server.bodies.append(body)
        self.server.paths.append(self.path)
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        for resource in message.resource_spans:
            for scope in resource.scope_spans:
                self.server.spans.extend(scope.spans)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *values: object) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextmanager
def tracing(receiver: Receiver, **of: Any) -> Iterator[OpenTelemetry]:
    telemetry = OpenTelemetry(TelemetryConfig(endpoint=receiver.url, **of))
    yield telemetry
    telemetry.stop()


def said(span: Span) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes
    }


def trace(receiver: Receiver, work: Any, *behaviors: Any, **of: Any) -> None:
    """Do something at a gateway that is traced, and wait until all spans are there."""

    async def within() -> None:
        with tracing(receiver, **of) as telemetry:
            async with gateway_over({"m": behaviors}, around={"tracing": telemetry}) as running:
                await work(running)

    run(within())


def test_a_request_is_a_span_within_the_clients_trace_and_its_try_one_within_it(
    receiver: Receiver,
) -> None:
    heard: dict[str, str] = {}

    async def ask(running: Running) -> None:
        turns = [{"role": "user", "content": SECRET}]
        await running.ask(headers=PARTS, messages=turns, caller="ali")
        heard.update(running.servers["m"][0].asked[0].headers)

    trace(receiver, ask, well)
    [request], [attempt] = receiver.of(Span.SPAN_KIND_SERVER), receiver.of(Span.SPAN_KIND_CLIENT)
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert (attempt.trace_id.hex(), attempt.parent_span_id) == (TRACE, request.span_id)
    assert heard["traceparent"] == f"00-{TRACE}-{attempt.span_id.hex()}-01"
    assert heard["tracestate"] == "vendor=1"
    assert (request.name, attempt.name) == ("chat m", "chat m")
    found = said(request)
    assert found["gen_ai.operation.name"] == "chat"
    assert found["gen_ai.request.model"] == found["gen_ai.response.model"] == "m"
    assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (5, WORDS)
    assert (found["http.response.status_code"], found["http.route"]) == (
        200,
        "/v1/chat/completions",
    )
    assert (found["moestro.outcome"], found["moestro.reason"]) == ("answered", "named")
    assert 0 < found["gen_ai.response.time_to_first_chunk"] < 30
    inner = said(attempt)
    assert (inner["gen_ai.provider.name"], inner["moestro.backend"]) == ("openai", "m/0")
    assert (inner["server.address"], inner["http.response.status_code"]) == ("127.0.0.1", 200)
    assert request.start_time_unix_nano <= attempt.start_time_unix_nano
    assert request.status.code == attempt.status.code == Status.STATUS_CODE_UNSET
    # What was asked, what was answered and who asked is nobody's business.
    for text in (SECRET, whole_text(), "ali"):
        assert not any(text.encode() in body for body in receiver.bodies)


def test_a_stream_that_breaks_is_a_span_for_each_try_and_the_first_is_a_failure(
    receiver: Receiver,
) -> None:
    async def ask(running: Running) -> None:
        await running.stream()

    trace(receiver, ask, [breaks(5, reset), well])
    [request] = receiver.of(Span.SPAN_KIND_SERVER)
    attempts = sorted(receiver.of(Span.SPAN_KIND_CLIENT), key=lambda s: s.start_time_unix_nano)
    assert {each.parent_span_id for each in attempts} == {request.span_id}
    assert [said(each).get("error.type") for each in attempts] == ["broken", None]
    assert [each.status.code for each in attempts] == [
        Status.STATUS_CODE_ERROR,
        Status.STATUS_CODE_UNSET,
    ]
    assert (said(request)["moestro.failovers"], said(request)["moestro.attempts"]) == (1, 2)
    assert said(request)["gen_ai.request.stream"] is True
    assert request.status.code == Status.STATUS_CODE_UNSET


def test_a_request_that_nobody_answers_is_an_error_with_the_status_that_was_seen(
    receiver: Receiver,
) -> None:
    async def ask(running: Running) -> None:
        with pytest.raises(BackendError):
            await running.ask()

    trace(receiver, ask, replies(500))
    [request] = receiver.of(Span.SPAN_KIND_SERVER)
    assert request.status.code == Status.STATUS_CODE_ERROR
    assert said(request)["error.type"] == "503"
    assert {said(each)["error.type"] for each in receiver.of(Span.SPAN_KIND_CLIENT)} == {"status"}
    assert len(receiver.of(Span.SPAN_KIND_CLIENT)) == said(request)["moestro.attempts"] == 3


def test_a_callers_mistake_is_no_error_of_ours_and_a_long_name_is_cut(receiver: Receiver) -> None:
    async def ask(running: Running) -> None:
        with pytest.raises(UnknownModelError):
            await running.ask(model="x" * 5000)

    trace(receiver, ask, well)
    [request] = receiver.spans
    assert request.status.code == Status.STATUS_CODE_UNSET
    assert said(request)["http.response.status_code"] == 404
    assert len(request.name) == len("chat ") + 100


def test_a_client_that_leaves_ends_both_spans(receiver: Receiver) -> None:
    async def ask(running: Running) -> None:
        asking = asyncio.create_task(running.ask())
        while not running.servers["m"][0].asked:
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    trace(receiver, ask, stall)
    [request], [attempt] = receiver.of(Span.SPAN_KIND_SERVER), receiver.of(Span.SPAN_KIND_CLIENT)
    assert said(request)["moestro.outcome"] == "left"
    assert said(attempt)["error.type"] == "cancelled"


def test_a_share_is_of_requests_without_a_trace_and_the_clients_word_counts_first(
    receiver: Receiver,
) -> None:
    async def ask(running: Running) -> None:
        await running.ask()
        await running.ask(headers=PARTS)
        await running.ask(headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
        # What is no trace begins one of its own, by the share.
        await running.ask(headers={"traceparent": "00-what"})

    trace(receiver, ask, well, share=0.0)
    assert [each.parent_span_id.hex() for each in receiver.of(Span.SPAN_KIND_SERVER)] == [PARENT]


def test_the_collector_is_shown_its_key_and_nobody_else_is(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLLECTOR_KEY", "Bearer s3cret")
    heard: dict[str, str] = {}

    async def ask(running: Running) -> None:
        await running.ask()
        heard.update(running.servers["m"][0].asked[0].headers)

    trace(receiver, ask, well, headers={"authorization": "env:COLLECTOR_KEY"}, service="mine")
    assert receiver.paths == ["/v1/traces"]
    assert receiver.headers[0]["authorization"] == "Bearer s3cret"
    assert "authorization" not in heard
    assert b"mine" in receiver.bodies[0]
    assert b"s3cret" not in receiver.bodies[0]


def test_a_collector_that_is_not_there_disturbs_nobody() -> None:
    with Receiver() as gone:
        url = gone.url
    telemetry = OpenTelemetry(TelemetryConfig(endpoint=url))

    async def within() -> None:
        async with gateway_over({"m": [well]}, around={"tracing": telemetry}) as running:
            assert (await running.ask()).status == 200

    run(within())
    telemetry.stop()


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ({"endpoint": "collector:4318"}, "endpoint is no address"),
        ({"endpoint": "ftp://collector"}, "endpoint is no address"),
        ({"endpoint": "http://me:s3cret@collector"}, "has a user or a password"),
        ({"share": 1.5}, "share is 1.5"),
        ({"headers": {"authorization": "s3cret"}}, "headers.authorization names no variable"),
    ],
)
def test_a_mistake_is_one_line_without_secrets(of: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        TelemetryConfig(**of)
    assert "s3cret" not in str(caught.value)


def test_a_gateway_that_sends_no_spans_imports_nothing_of_it() -> None:
    code = (
        "import sys, moestro.cli.gateway_app, moestro.cli.fleet, moestro.cli.worker\n"
        "from moestro.gateway.config import TelemetryConfig\n"
        "moestro.cli.gateway_app.check_telemetry(TelemetryConfig())\n"
        "assert moestro.cli.gateway_app._build_telemetry(TelemetryConfig()) is None\n"
        # Others of our dependencies import its interface where it is there, but not what works.
        "wanted = ('opentelemetry.sdk', 'opentelemetry.exporter', 'moestro.gateway.telemetry')\n"
        "print([name for name in wanted if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_gateway_without_the_packages_says_what_to_install() -> None:
    code = (
        "import sys\nsys.modules['opentelemetry.sdk'] = None\n"
        "from moestro.cli.gateway_app import check_telemetry\n"
        "from moestro.gateway.config import TelemetryConfig\n"
        "check_telemetry(TelemetryConfig(endpoint='http://127.0.0.1:4318'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ConfigError: telemetry needs packages that are not here" in done.stderr
    assert "pip install 'moestro[otel]'" in done.stderr
