"""Metrics: vLLM's names, bounded labels, and numbers that agree with what was answered."""

from collections.abc import Sequence

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_text
from starlette.types import Receive, Scope, Send

from moestro.api.stats import ExpertStats, Stats
from moestro.backends.scripted import ScriptedBackend
from moestro.server import metrics
from moestro.server.gauges import BackendCollector
from moestro.server.metrics import HttpMetrics
from tests.unit.server.asgi import ask

OPEN_TEXT = {"accept": "application/openmetrics-text; version=1.0.0"}
# What a dashboard made for vLLM asks for, under our prefix.
KNOWN_FROM_VLLM = (
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"),
    *("prefix_cache_queries_total", "prefix_cache_hits_total", "num_preemptions_total"),
    *("prompt_tokens_total", "generation_tokens_total", "spec_decode_num_drafts_total"),
    *("spec_decode_num_draft_tokens_total", "spec_decode_num_accepted_tokens_total"),
)
STATS = Stats(
    model="tiny",
    state="ready",
    num_running=3,
    num_waiting=5,
    cache_usage=0.25,
    experts_level=2.5,
    prompt_tokens=100,
    generation_tokens=40,
    prefix_queries=90,
    prefix_hits=30,
    preemptions=2,
    num_drafts=10,
    draft_tokens=20,
    accepted_draft_tokens=15,
    engine_restarts=3,
    engine_hangs=1,
    experts=ExpertStats(
        tokens_LE=((7, 0), (3, 4)),
        violation_L=(1.0, 0.5),
        starved_L=(1, 0),
        mean_experts=2.75,
    ),
)


class Counting(ScriptedBackend):
    """A backend with statistics of a test's choice."""

    def __init__(self, *stats: Stats) -> None:
        super().__init__()
        self.told = stats

    def stats(self) -> Sequence[Stats]:
        """Return them."""
        return self.told


def build_app(registry: CollectorRegistry) -> FastAPI:
    app = FastAPI()
    app.include_router(metrics.routes(registry))
    app.add_middleware(HttpMetrics, registry=registry)

    @app.get("/things/{number}")
    async def show_thing(number: int) -> int:
        return number

    return app


def scrape(*stats: Stats) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(BackendCollector(Counting(*stats)))
    return registry


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"moestro:{name}", {"model_name": "tiny"} | labels)


def test_every_name_that_dashboards_know_is_there() -> None:
    text = ask(build_app(scrape(STATS)), "GET", "/metrics").text
    names = {sample.name for family in parse_text(text) for sample in family.samples}
    assert {f"moestro:{name}" for name in KNOWN_FROM_VLLM} <= names


@pytest.mark.parametrize(
    ("name", "labels", "number"),
    [
        ("num_requests_running", {}, 3),
        ("num_requests_waiting", {}, 5),
        ("kv_cache_usage_perc", {}, 0.25),
        ("mean_experts", {}, 2.75),
        ("experts_level", {}, 2.5),
        ("draft_acceptance", {}, 0.75),
        ("prompt_tokens_total", {}, 100),
        ("generation_tokens_total", {}, 40),
        ("prefix_cache_queries_total", {}, 90),
        ("prefix_cache_hits_total", {}, 30),
        ("num_preemptions_total", {}, 2),
        ("spec_decode_num_drafts_total", {}, 10),
        ("spec_decode_num_draft_tokens_total", {}, 20),
        ("spec_decode_num_accepted_tokens_total", {}, 15),
        ("engine_restarts_total", {}, 3),
        ("engine_hangs_total", {}, 1),
        ("expert_tokens_total", {"layer": "0", "expert": "0"}, 7),
        ("expert_tokens_total", {"layer": "1", "expert": "1"}, 4),
        ("expert_load_violation", {"layer": "1"}, 0.5),
        ("starved_experts", {"layer": "0"}, 1),
    ],
)
def test_a_scrape_shows_what_the_backend_counts(
    name: str, labels: dict[str, str], number: float
) -> None:
    assert value(scrape(STATS), name, **labels) == number


def test_what_is_not_known_is_left_out() -> None:
    registry = scrape(Stats(model="tiny", state="loading"))
    assert value(registry, "draft_acceptance") is None
    assert value(registry, "mean_experts") is None
    assert value(registry, "experts_level") is None
    assert value(registry, "num_requests_running") == 0


def test_a_scrape_shows_the_moment() -> None:
    backend = Counting(STATS)
    registry = CollectorRegistry()
    registry.register(BackendCollector(backend))
    backend.told = (Stats(model="tiny", state="ready", num_running=8),)
    assert value(registry, "num_requests_running") == 8


def test_scrapers_get_the_format_that_they_ask_for() -> None:
    app = build_app(scrape(STATS))
    plain = ask(app, "GET", "/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    opened = ask(app, "GET", "/metrics", headers=OPEN_TEXT)
    assert opened.headers["content-type"].startswith("application/openmetrics-text")
    assert "moestro:num_requests_running" in {family.name for family in parse_open(opened.text)}


def test_requests_are_counted_by_the_path_of_their_route() -> None:
    registry = CollectorRegistry()
    app = build_app(registry)
    for path in ("/things/1", "/things/2", "/things/many", "/a", "/b", "/c"):
        ask(app, "GET", path)
    ask(app, "BREW", "/things/1")
    counted = {
        tuple(sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "moestro:http_requests_total"
    }
    assert counted == {
        ("GET", "/things/{number}", "200"): 2,
        ("GET", "/things/{number}", "422"): 1,
        ("GET", "other", "404"): 3,
        ("other", "/things/{number}", "405"): 1,
    }


def test_durations_last_to_the_end_of_the_answer() -> None:
    now = 5.0

    async def answer_slowly(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal now
        await send({"type": "http.response.start", "status": 200, "headers": []})
        now += 2.5
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    registry = CollectorRegistry()
    ask(HttpMetrics(answer_slowly, registry, clock=lambda: now), "GET", "/")
    labels = {"method": "GET", "path": "other"}
    name = "moestro:http_request_duration_seconds"
    assert registry.get_sample_value(f"{name}_sum", labels) == 2.5
    assert registry.get_sample_value(f"{name}_count", labels) == 1


def test_a_request_that_breaks_the_application_counts_as_a_fault() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise OSError("the disk is gone")

    registry = CollectorRegistry()
    with pytest.raises(OSError, match="disk"):
        ask(HttpMetrics(fail, registry), "GET", "/")
    labels = {"method": "GET", "path": "other", "status": "500"}
    assert registry.get_sample_value("moestro:http_requests_total", labels) == 1


def test_two_applications_in_one_process_count_apart() -> None:
    first, second = CollectorRegistry(), CollectorRegistry()
    apps = build_app(first), build_app(second)
    ask(apps[0], "GET", "/things/1")
    labels = {"method": "GET", "path": "/things/{number}", "status": "200"}
    assert first.get_sample_value("moestro:http_requests_total", labels) == 1
    assert second.get_sample_value("moestro:http_requests_total", labels) is None
