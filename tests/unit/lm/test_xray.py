"""An x-ray tells the truth about each token, and its page shows text as text."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from moestro.errors import CheckpointError, ConfigError, DataError
from moestro.lm.xray import PAGE_TOKENS, TokenView, write_page, xray
from moestro.model.trace import Trace
from tests.unit.lm import tiny

TEXT = "def area(radius):\n    return radius\n"


def test_tokens_join_to_the_text_and_their_nats_to_its_score() -> None:
    lm = tiny.language_model()
    views = xray(lm, TEXT, 3.0)
    assert "".join(view.text for view in views) == TEXT
    assert sum(view.nats for view in views) == pytest.approx(lm.score([TEXT], 3.0).nats, rel=1e-5)


def test_the_first_token_is_predicted_from_the_one_that_begins_a_text() -> None:
    lm = tiny.language_model()
    logits = lm.logits([lm.tokenizer.bos_id])[0].astype(np.float64)
    first = lm.tokenizer.encode(TEXT)[0]
    nats = np.log(np.exp(logits).sum()) - logits[first]
    assert xray(lm, TEXT)[0].nats == pytest.approx(nats, rel=1e-5)


def test_experts_are_those_that_the_gates_used_for_that_token() -> None:
    lm = tiny.language_model()
    ids = lm.tokenizer.encode(TEXT)
    trace = Trace()
    with torch.no_grad():
        lm.model(torch.tensor([[lm.tokenizer.bos_id, *ids]]), budget=3.0, trace=trace)
    views = xray(lm, TEXT, 3.0)
    for place, view in enumerate(views):
        assert len(view.experts) == 2
        for layer, uses in enumerate(view.experts):
            record = trace.gates[layer]
            is_used = record.is_used_TK[place + 1]
            assert [use.expert for use in uses] == record.experts_TK[place + 1][is_used].tolist()
            assert sum(use.weight for use in uses) == pytest.approx(1.0, rel=1e-5)
    counts = {len(uses) for view in views for uses in view.experts}
    assert counts <= {2, 3, 4}
    assert len(counts) > 1


def test_json_is_in_the_words_of_the_contract() -> None:
    view = xray(tiny.language_model(), "a b", 2.0)[0].to_dict()
    assert set(view) == {"text", "nats", "experts"}
    assert set(view["experts"][0][0]) == {"expert", "weight"}
    json.dumps(view, allow_nan=False)


def test_a_dense_model_has_tokens_without_experts(tmp_path: Path) -> None:
    views = xray(tiny.language_model(**tiny.DENSE), TEXT)
    assert {len(view.experts) for view in views} == {0}
    assert views[0].mean_experts is None
    assert write_page(views, tmp_path / "x.html").exists()


def test_text_that_does_not_fit_or_is_empty_is_refused_with_its_size() -> None:
    lm = tiny.language_model()
    fitting = lm.tokenizer.decode(lm.tokenizer.encode("a1" * 400)[:255])
    assert len(xray(lm, fitting)) == 255
    with pytest.raises(DataError, match="has 256 tokens, limit 255: shorten it"):
        xray(lm, fitting + "1")
    with pytest.raises(DataError, match="empty"):
        xray(lm, "")


def test_a_budget_that_the_model_cannot_keep_is_refused() -> None:
    with pytest.raises(ConfigError, match="experts is 5"):
        xray(tiny.language_model(), TEXT, 5.0)


def test_the_page_holds_every_token_as_data_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    views = xray(tiny.language_model(), "</script><b>&amp;'\"")
    page = write_page(views, tmp_path / "x.html", 1).read_text()
    match = re.search(r'<script type="application/json" id="views">(.*?)</script>', page, re.S)
    assert match is not None
    data = json.loads(match.group(1))
    assert [view["t"] for view in data["views"]] == [view.text for view in views]
    assert data["first"] == 1
    assert not re.search(r"(src|href)\s*=|url\(|@import|https?://", page)
    assert "prefers-color-scheme: dark" in page


def test_a_very_long_text_is_shown_in_part_and_says_so(tmp_path: Path) -> None:
    views = [TokenView(text="x", nats=1.0, experts=[])] * (PAGE_TOKENS + 1)
    page = write_page(views, tmp_path / "x.html").read_text()
    assert page.count('"t": "x"') == PAGE_TOKENS
    assert f"shows the first {PAGE_TOKENS}" in page


def test_a_model_whose_weights_are_no_numbers_is_not_shown() -> None:
    lm = tiny.language_model()
    with torch.no_grad():
        lm.model.embed_tokens.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="are not numbers"):
        xray(lm, TEXT)
    with pytest.raises(CheckpointError, match="are not numbers"):
        lm.score([TEXT])
