"""A review measures one and the same text throughout, for every kind of model."""

import json
from pathlib import Path
from typing import Any

import pytest

from moestro.files import read_json
from moestro.lm.review import Limits, default_budget, limits_for, review, review_run
from moestro.train.config import build_run_config
from moestro.train.run import Run
from tests.unit.lm import tiny

LIMITS = Limits(max_bytes=10_000, curve_bytes=600, num_budgets=5, num_samples=2, sample_tokens=6)


def test_a_review_tells_of_budget_domains_and_samples(tmp_path: Path) -> None:
    lm, data = tiny.language_model(), tiny.shards(tmp_path)
    heard: list[str] = []
    found = review(lm, data, limits=LIMITS, say=heard.append).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert heard
    assert found["budget"] == 3.0
    assert set(found["domains"]) == {"python", "c", "prose"}
    assert found["held_out"]["mean_experts"] == 4.0
    assert [p["requested"] for p in found["budget_curve"]] == [2.0, 2.5, 3.0, 3.5, 4.0]
    means = [point["mean_experts"] for point in found["budget_curve"]]
    assert means == sorted(means)
    assert (means[0], means[-1]) == (2.0, 4.0)
    assert len(found["samples"]) == 2
    assert len(found["divergence"]["by_layer"]) == 2
    assert [each["domain"] for each in found["knock_out"]] == ["python", "c", "prose"]


def test_a_long_review_says_how_far_each_stage_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moestro.lm.review._SAY_EVERY_S", 0.0)
    heard: list[str] = []
    review(tiny.language_model(), tiny.shards(tmp_path), limits=LIMITS, say=heard.append)
    shares: dict[str, list[int]] = {}
    for name, _, share in (line.rpartition(": ") for line in heard if line.endswith("%")):
        shares.setdefault(name.split()[0], []).append(int(share.rstrip("%")))
    assert set(shares) == {"evaluating", "measuring", "switching"}
    for told in shares.values():
        assert max(told) <= 100
    # Of two stages that evaluate, and of one each.
    assert [told.count(100) for told in shares.values()] == [2, 1, 0]
    assert shares["measuring"] == sorted(shares["measuring"])


def test_the_headline_is_what_scoring_the_same_documents_gives(tmp_path: Path) -> None:
    lm, data = tiny.language_model(), tiny.shards(tmp_path)
    found = review(lm, data, limits=LIMITS).to_dict()
    texts = [document.text for document in data.held_out]
    for name, budget in (("held_out", None), ("at_budget", 3.0)):
        part = found[name] if budget is None else found[name]["held_out"]
        scored = lm.score(texts, budget)
        assert part["bytes"] == scored.bytes == found["held_out_bytes"]
        assert part["bits_per_byte"] == pytest.approx(scored.bits_per_byte, rel=1e-5)
    domains = found["domains"].values()
    assert sum(part["tokens"] for part in domains) == found["held_out"]["tokens"]


def test_model_and_baselines_read_the_same_part_of_the_text(tmp_path: Path) -> None:
    data = tiny.shards(tmp_path)
    data.about["baselines"] = {"gzip": 1.0, "xz": 2.0, "ngram": 3.0}
    part = review(tiny.language_model(), data, limits=Limits(max_bytes=500, curve_bytes=300))
    assert part.to_dict()["held_out"]["bytes"] <= 500
    assert part.baselines != part.baselines_of_all == data.about["baselines"]
    whole = review(tiny.language_model(), data, limits=LIMITS)
    assert whole.baselines == data.about["baselines"]


@pytest.mark.parametrize("changes", [tiny.FIXED, tiny.DENSE, tiny.GREEDY | tiny.FIXED])
def test_models_without_a_budget_or_experts_are_reviewed_too(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    lm = tiny.language_model(**changes)
    found = review(lm, tiny.shards(tmp_path), limits=LIMITS).to_dict()
    is_dense = changes is tiny.DENSE
    assert default_budget(lm.config) is None
    assert (found["budget"], found["at_budget"], found["budget_curve"]) == (None, None, [])
    assert (found["knock_out"] is None) == (found["divergence"] is None) == is_dense
    assert len(found["samples"]) == 2


def test_a_run_keeps_its_review_and_its_report(tmp_path: Path) -> None:
    lm = tiny.language_model()
    config = build_run_config({"preset": "demo", "data": {"paths": ["python"]}})
    run = Run(folder=tmp_path, config=config, tokenizer=lm.tokenizer, data=tiny.shards(tmp_path))
    found = review_run(run, lm.model, limits=LIMITS)
    assert read_json(tmp_path / "review.json") == found
    assert found["held_out"]["max_violation"]
    assert (tmp_path / "report.html").stat().st_size > 1_000_000


def test_a_model_that_diverged_still_gets_a_review(tmp_path: Path) -> None:
    lm = tiny.language_model()
    lm.model.norm.weight.data.fill_(float("nan"))
    config = build_run_config({"preset": "demo", "data": {"paths": ["python"]}})
    run = Run(folder=tmp_path, config=config, tokenizer=lm.tokenizer, data=tiny.shards(tmp_path))
    assert review_run(run, lm.model, limits=LIMITS)["held_out"]["bits_per_byte"] is None


def test_a_gpu_reads_more_than_a_cpu() -> None:
    assert limits_for("cuda:0").max_bytes > limits_for("cpu").max_bytes
