"""Every token of every document is scored exactly once, and evaluations of parts add up.

Shapes: V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moestro.model.model import Transformer
from moestro.train.evaluate import Evaluation, TokenDocument, evaluate
from tests.builders import linear_budget, random_model, random_tokens, tiny_config

CONTEXT = 16


def constant_model(context: int = CONTEXT) -> tuple[Transformer, torch.Tensor]:
    """Build a model that ignores its context, and the nats_V that each token costs it."""
    model = random_model(tiny_config(max_position_embeddings=context))
    with torch.no_grad():
        model.embed_tokens.weight.copy_(model.embed_tokens.weight[:1].expand(40, -1))
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
                parameter.zero_()
        logits_V = model.logits(model(torch.tensor([[0]])))[0, 0]
    return model, -logits_V.log_softmax(dim=-1)


def document(tokens: Sequence[int], num_bytes: int | None = None) -> TokenDocument:
    return TokenDocument(tokens, 3 * len(tokens) if num_bytes is None else num_bytes)


@given(lengths=st.lists(st.integers(0, 90), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_every_token_is_scored_exactly_once_however_long_its_document(
    lengths: list[int], seed: int
) -> None:
    model, nats_V = constant_model()
    ids = random_tokens(model.config, sum(lengths), seed=seed)
    documents = [document(part.tolist()) for part in ids.split(lengths)]
    result = evaluate(model, documents, start_id=0)
    assert (result.tokens, result.documents) == (sum(lengths), len(lengths))
    assert result.bytes == 3 * sum(lengths)
    assert result.nats == pytest.approx(float(nats_V[ids].sum()), rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("context", [1, 2, 3])
def test_even_the_shortest_context_scores_every_token(context: int) -> None:
    model, nats_V = constant_model(context)
    ids = random_tokens(model.config, 11)
    result = evaluate(model, [document(ids.tolist())], start_id=0)
    assert result.nats == pytest.approx(float(nats_V[ids].sum()), rel=1e-5)


def test_a_short_document_is_predicted_from_all_that_precedes_it() -> None:
    model = random_model(tiny_config(max_position_embeddings=CONTEXT))
    ids = random_tokens(model.config, CONTEXT)
    tokens_BS = torch.cat([torch.tensor([7]), ids])[None]
    with torch.no_grad():
        logits = model.logits(model(tokens_BS[:, :-1]))[0]
    expected = float(torch.nn.functional.cross_entropy(logits, ids, reduction="sum"))
    result = evaluate(model, [document(ids.tolist())], start_id=7)
    assert result.nats == pytest.approx(expected, rel=1e-5)


def test_a_long_document_keeps_at_least_half_a_context_before_each_token() -> None:
    model = random_model(tiny_config(max_position_embeddings=CONTEXT))
    ids = random_tokens(model.config, 24).tolist()
    with torch.no_grad():
        first = nats_of(model, [7, *ids[:16]])
        # The other eight come from a window that begins half a context before them.
        second = nats_of(model, ids[7:24])[8:]
    result = evaluate(model, [document(ids)], start_id=7)
    assert result.nats == pytest.approx(float(first.sum() + second.sum()), rel=1e-5)


def test_neighbors_in_a_batch_change_nothing_and_evaluations_add_up() -> None:
    config = tiny_config(max_position_embeddings=CONTEXT)
    model = random_model(config.with_budget(linear_budget(config)))
    ids = random_tokens(config, 70)
    documents = [document(part.tolist()) for part in ids.split([3, 20, 1, 41, 5])]
    whole = evaluate(model, documents, start_id=0, budget=3.0)
    alone = [evaluate(model, [item], start_id=0, budget=3.0) for item in documents]
    added = sum(alone[1:], alone[0])
    for item in fields(Evaluation):
        ours, expected = getattr(added, item.name), getattr(whole, item.name)
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4, err_msg=item.name)
    assert added.mean_experts == pytest.approx(whole.mean_experts)


def test_bits_per_byte_is_that_of_a_hand_calculation() -> None:
    model, _ = constant_model()
    with torch.no_grad():
        model.norm.weight.zero_()
    # All 40 tokens are equally likely: log2(40) bits each, at 10 tokens for 25 bytes.
    result = evaluate(model, [document([1] * 10, num_bytes=25)], start_id=0)
    assert result.nats_per_token == pytest.approx(math.log(40))
    assert result.bits_per_byte == pytest.approx(10 * math.log2(40) / 25)


def test_no_documents_give_zeros_and_no_division_by_zero() -> None:
    model, _ = constant_model()
    result = evaluate(model, [], start_id=0)
    assert (result.tokens, result.nats_per_token, result.bits_per_byte) == (0, 0.0, 0.0)
    assert evaluate(model, [document([])], start_id=0).documents == 1


def test_loads_and_histogram_count_scored_tokens_only() -> None:
    config = tiny_config(max_position_embeddings=CONTEXT, first_k_dense_replace=0)
    model = random_model(config.with_budget(linear_budget(config)))
    ids = random_tokens(config, 50)
    documents = [document(part.tolist()) for part in ids.split([45, 5])]
    for budget, histogram in ((None, [0, 0, 0, 0, 50]), (2.0, [0, 0, 50, 0, 0])):
        result = evaluate(model, documents, start_id=0, budget=budget)
        assert result.histogram_LK.tolist() == [histogram] * 2
        assert result.mean_experts == (budget or 4.0)
        assert result.load_LE.sum(axis=1).tolist() == [50 * (budget or 4)] * 2
        assert len(result.max_violation) == 2


def test_mtp_modules_are_no_part_of_the_loads() -> None:
    model = random_model(tiny_config(num_nextn_predict_layers=1))
    result = evaluate(model, [document([1, 2, 3])], start_id=0)
    assert result.load_LE.shape == (1, 8)


def test_a_dense_model_has_no_experts_to_report() -> None:
    model = random_model(tiny_config(first_k_dense_replace=2))
    result = evaluate(model, [document([1, 2, 3])], start_id=0)
    assert (result.mean_experts, result.max_violation, result.starved) == (None, [], [])
    assert result.to_dict()["experts_histogram"] == {}


HAND = Evaluation(
    documents=1,
    bytes=8,
    tokens=4,
    nats=10.0,
    load_LE=np.array([[7.0, 1.0, 0.4, 3.6], [3.0, 3.0, 3.0, 3.0]]),
    histogram_LK=np.array([[0.0, 0, 1, 2, 1], [0, 0, 1, 2, 1]]),
    moments_LM=np.zeros((2, 6)),
)


def test_violation_and_starved_experts_are_those_of_a_hand_calculation() -> None:
    assert HAND.max_violation == pytest.approx([7 / 3 - 1, 0.0])
    assert HAND.starved == [[], []]
    hungry = Evaluation(**(vars(HAND) | {"load_LE": np.array([[11.0, 0.2, 0.0, 0.8]])}))
    assert hungry.starved == [[1, 2]]
    assert HAND.to_dict()["experts_histogram"] == {"2": 2, "3": 4, "4": 2}
    assert HAND.mean_experts == pytest.approx(24 / 8)


def test_the_correlation_of_experts_with_nats_is_numpys() -> None:
    k = np.array([2.0, 4.0, 3.0, 2.0, 4.0])
    x = np.array([0.5, 3.0, 1.0, 1.5, 2.0])
    row = [len(k), k.sum(), (k * k).sum(), x.sum(), (x * x).sum(), (k * x).sum()]
    flat = [5.0, 20.0, 80.0, x.sum(), (x * x).sum(), 4 * x.sum()]
    result = Evaluation(**(vars(HAND) | {"moments_LM": np.array([row, flat])}))
    expected = np.corrcoef(k, x)[0, 1]
    assert result.experts_nats_correlation == pytest.approx([expected, 0.0])


def nats_of(model: Transformer, tokens: list[int]) -> torch.Tensor:
    logits = model.logits(model(torch.tensor([tokens[:-1]])))[0]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(tokens[1:]), reduction="none")
