"""What backends count, read at the moment of a scrape and given Prometheus's names.

Knows `Stats` only; what single requests took is in observed.py. Next: observed.py.

Shapes: L MoE layers, E experts.
"""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from moestro.api.backend import Backend
from moestro.api.stats import Stats

Read = Callable[[Stats], float | None]

_GAUGES: tuple[tuple[str, str, Read], ...] = (
    ("num_requests_running", "Requests being answered.", lambda each: each.num_running),
    ("num_requests_waiting", "Requests in the queue.", lambda each: each.num_waiting),
    ("kv_cache_usage_perc", "Cache in use; 1 is all of it.", lambda each: each.cache_usage),
    ("mean_experts", "Experts per token, recent window.", lambda each: each.experts.mean_experts),
    ("experts_level", "Experts granted to auto.", lambda each: each.experts_level),
    (
        "draft_acceptance",
        "Share of drafted tokens accepted, since the start.",
        lambda each: each.accepted_draft_tokens / each.draft_tokens if each.draft_tokens else None,
    ),
)
_COUNTERS: tuple[tuple[str, str, Read], ...] = (
    ("prompt_tokens", "Prompt tokens taken in.", lambda each: each.prompt_tokens),
    ("generation_tokens", "Tokens generated.", lambda each: each.generation_tokens),
    ("prefix_cache_queries", "Tokens looked up for reuse.", lambda each: each.prefix_queries),
    ("prefix_cache_hits", "Tokens found and reused.", lambda each: each.prefix_hits),
    ("num_preemptions", "Requests put back for want of cache.", lambda each: each.preemptions),
    ("spec_decode_num_drafts", "Drafts made.", lambda each: each.num_drafts),
    ("spec_decode_num_draft_tokens", "Tokens drafted.", lambda each: each.draft_tokens),
    (
        "spec_decode_num_accepted_tokens",
        "Drafted tokens accepted.",
        lambda each: each.accepted_draft_tokens,
    ),
    ("engine_restarts", "Times that the engine was restarted.", lambda each: each.engine_restarts),
    ("engine_hangs", "Times that the engine was stuck and killed.", lambda each: each.engine_hangs),
)
_MODEL = "model_name"


class BackendCollector(Collector):
    """Gives a registry what a backend's `stats` say now."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def collect(self) -> Iterable[Metric]:
        """Return all metrics, those without a value left out."""
        stats = self._backend.stats()
        yield from _scalars(stats)
        yield from _experts(stats)


def _scalars(stats: Iterable[Stats]) -> Iterator[Metric]:
    stats = tuple(stats)
    for name, text, read in _GAUGES:
        gauge = GaugeMetricFamily(f"moestro:{name}", text, labels=(_MODEL,))
        for each in stats:
            value = read(each)
            if value is not None:
                gauge.add_metric((each.model,), value)
        yield gauge
    for name, text, read in _COUNTERS:
        counter = CounterMetricFamily(f"moestro:{name}", text, labels=(_MODEL,))
        for each in stats:
            counter.add_metric((each.model,), read(each) or 0)
        yield counter


def _experts(stats: Iterable[Stats]) -> Iterator[Metric]:
    labels = (_MODEL, "layer")
    tokens = CounterMetricFamily(
        "moestro:expert_tokens",
        "Tokens that visited an expert, drafts that were wrong among them.",
        labels=(*labels, "expert"),
    )
    violation = GaugeMetricFamily(
        "moestro:expert_load_violation",
        "Largest load over the mean load, minus 1, recent window.",
        labels=labels,
    )
    starved = GaugeMetricFamily(
        "moestro:starved_experts",
        "Experts with under a tenth of their share, recent window.",
        labels=labels,
    )
    for each in stats:
        for layer, tokens_E in enumerate(each.experts.tokens_LE):
            for expert, num in enumerate(tokens_E):
                tokens.add_metric((each.model, str(layer), str(expert)), num)
        for layer, value in enumerate(each.experts.violation_L):
            violation.add_metric((each.model, str(layer)), value)
        for layer, num in enumerate(each.experts.starved_L):
            starved.add_metric((each.model, str(layer)), num)
    yield from (tokens, violation, starved)
