"""A report is one offline file that shows what there is, escapes text, and stays small."""

import json
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from moestro import settings
from moestro.lm.charts import MAX_POINTS, thin, training_charts
from moestro.lm.report import finite, render, write_report
from moestro.lm.review import Limits, review
from moestro.lm.review_charts import expert_charts, quality_charts
from moestro.train.config import build_run_config
from tests.unit.lm import tiny

LIMITS = Limits(max_bytes=10_000, curve_bytes=600, num_budgets=3, num_samples=1, sample_tokens=4)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data = tiny.shards(tmp_path_factory.mktemp("run"))
    return review(tiny.language_model(), data, limits=LIMITS).to_dict()


def config() -> dict[str, Any]:
    tables = {"data": {"paths": ["python"]}, "model": {"first_k_dense_replace": 1}}
    return settings.to_tables(build_run_config({"preset": "demo", **tables}))


def charts_of(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.S)
    assert match is not None
    charts: dict[str, Any] = json.loads(match.group(1))
    return charts


def test_every_chart_is_one_that_plotly_draws_with_title_hint_and_axes(
    found: dict[str, Any],
) -> None:
    evaluations = [{"step": 5, "evaluation": "held_out", "bits_per_byte": 2.0}]
    charts = training_charts([*tiny.rows(20), *evaluations])
    charts += [*quality_charts(found), *expert_charts(found, 1)]
    assert len({chart.name for chart in charts}) == len(charts) == 13
    for chart in charts:
        assert chart.title
        assert chart.hint.endswith(".")
        for traces in chart.choices.values():
            figure = go.Figure({"data": traces, "layout": chart.layout})
            assert figure.data
            assert figure.layout.xaxis.title.text or figure.layout.yaxis.title.text


def test_a_page_needs_nothing_from_elsewhere(tmp_path: Path, found: dict[str, Any]) -> None:
    page = write_report(tmp_path, tiny.rows(9), found, config()).read_text()
    ours = page.replace(page[page.index("<script>") : page.index("</script>")], "")
    assert not re.search(r"(src|href)\s*=|url\(|@import|https?://", ours)
    assert "prefers-color-scheme: dark" in ours
    assert "this model" in ours


def test_charts_and_their_choices_keep_their_order(found: dict[str, Any]) -> None:
    charts = charts_of(render("run", tiny.rows(9), found, config()))
    assert list(charts) == ["Held-out text", "Training", "Experts"]
    by_name = {chart["name"]: chart for part in charts.values() for chart in part}
    assert list(by_name["load"]["choices"]) == ["all text", "python", "c", "prose"]
    assert list(by_name["histogram"]["choices"]) == ["by layer", "by domain"]
    assert list(by_name["divergence"]["choices"]) == ["mean of layers", "layer 1", "layer 2"]


def test_text_that_is_not_ours_is_escaped(found: dict[str, Any]) -> None:
    evil = "</script></pre><script>alert(1)</script>"
    sample = dict.fromkeys(("name", "domain", "prompt", "reference", "completion"), evil)
    domains = {evil: found["domains"]["python"]}
    few = {"held_out": found["at_budget"]["held_out"], "domains": domains}
    changes = {"samples": [sample], "domains": domains, "at_budget": few}
    page = render(evil, [], {**found, **changes}, {evil: evil})
    assert "<script>alert" not in page
    assert "</pre><script>" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_run_that_has_only_begun_gets_a_report(tmp_path: Path) -> None:
    for rows in ([], tiny.rows(1), tiny.rows(3)):
        page = write_report(tmp_path, rows, None).read_text()
        assert "no review yet" in page
        assert ("Training loss" in page) == bool(rows)


def test_a_dense_run_shows_no_experts(tmp_path: Path) -> None:
    lm = tiny.language_model(**tiny.DENSE)
    dense = review(lm, tiny.shards(tmp_path), limits=LIMITS).to_dict()
    rows = [row | {"mean_experts": None, "max_violation": None} for row in tiny.rows(5)]
    rows = [row | {"mtp_loss": None} for row in rows]
    charts = charts_of(render("dense", rows, dense, config()))
    assert "Experts" not in charts
    assert "experts" not in [chart["name"] for chart in charts["Training"]]


def test_numbers_that_are_none_leave_gaps_instead_of_a_broken_page(found: dict[str, Any]) -> None:
    rows = tiny.rows(4)
    rows[2] |= {"loss": float("nan"), "grad_norm": float("inf")}
    broken = finite({**found, "held_out": {**found["held_out"], "bits_per_byte": float("nan")}})
    charts = charts_of(render("run", rows, broken, config()))
    loss = next(chart for chart in charts["Training"] if chart["name"] == "loss")
    assert loss["choices"][""][0]["y"][2] is None


def test_a_long_run_stays_small_and_keeps_its_ends_and_peaks() -> None:
    rows = tiny.rows(40_000)
    rows[12_345]["grad_norm"] = 99.0
    loss, gradient, *_ = training_charts(rows)
    trace = loss.choices[""][0]
    assert len(trace["x"]) == len(trace["y"]) <= MAX_POINTS
    assert trace["x"][-1] == 40_000
    assert max(gradient.choices[""][0]["y"]) == 99.0
    assert sum(len(json.dumps(chart.to_dict())) for chart in training_charts(rows)) < 500_000


def test_thinning_skips_what_was_not_measured() -> None:
    values = [None, 1.0, float("nan")] * MAX_POINTS
    assert thin(values, max) == [1.0] * MAX_POINTS
    assert thin([None, 2.0], max) == [None, 2.0]
