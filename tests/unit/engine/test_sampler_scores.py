"""Log-probabilities are the model's own, whatever is asked for beside them.

Shapes: N rows, V vocabulary.
"""

from dataclasses import replace

import pytest
import torch

from moestro.api.sampling import Sampling
from moestro.engine.guide import Guide
from moestro.engine.request import TokenScore
from moestro.engine.sampler import Row, pick, score
from tests.unit.engine.picking import Masked, greedy_row, mixed_rows


def test_logprobs_are_the_raw_models_whatever_the_sampling_does() -> None:
    logits_V = torch.tensor([1.0, 4.0, 3.0, -2.0])
    expected = logits_V.log_softmax(0).tolist()
    row = Row(
        sampling=Sampling(temperature=0.5, top_k=1, logit_bias={2: -50.0, 0: 9.0}),
        seed=0,
        position=0,
        guide=Guide(Masked([True, False, True, True])),
        top_logprobs=3,
    )
    [outcome] = pick(logits_V[None], [row])
    assert isinstance(outcome, TokenScore)
    assert outcome.token_id == 0
    assert outcome.logprob == pytest.approx(expected[0], abs=1e-6)
    assert [token_id for token_id, _ in outcome.alternatives] == [1, 2, 0]
    assert [logprob for _, logprob in outcome.alternatives] == pytest.approx(
        [expected[1], expected[2], expected[0]], abs=1e-6
    )


def test_log_probabilities_come_only_where_they_are_asked_for() -> None:
    rows = [replace(greedy_row(), top_logprobs=num) for num in (None, 0, 2, 9)]
    outcomes = pick(torch.tensor([[0.0, 0.0, 1.0]]).repeat(4, 1), rows)
    scores = [outcome for outcome in outcomes if isinstance(outcome, TokenScore)]
    assert [entry.logprob is None for entry in scores] == [True, False, False, False]
    assert [[i for i, _ in entry.alternatives] for entry in scores] == [[], [], [2, 0], [2, 0, 1]]


def test_scores_match_log_softmax() -> None:
    logits_NV = mixed_rows(42, 3001)[0]
    targets = [(i * 97) % 3001 for i in range(42)]
    scores = score(logits_NV, targets, 4)
    logprobs_NV = logits_NV.double().log_softmax(dim=-1)
    best_NV = logprobs_NV.topk(4)
    for i, entry in enumerate(scores):
        assert entry.token_id == targets[i]
        assert entry.logprob == pytest.approx(float(logprobs_NV[i, targets[i]]), abs=2e-6)
        assert [token_id for token_id, _ in entry.alternatives] == best_NV.indices[i].tolist()
        found = [logprob for _, logprob in entry.alternatives]
        assert found == pytest.approx(best_NV.values[i].tolist(), abs=2e-6)


def test_alternatives_name_no_impossible_token() -> None:
    [entry] = score(torch.tensor([[0.0, -torch.inf, 1.0]]), [2], 3)
    assert [token_id for token_id, _ in entry.alternatives] == [2, 0]


def test_alternatives_of_equal_probability_come_by_their_ids() -> None:
    [entry] = score(torch.arange(4.0).repeat(1, 25), [0], 80)
    expected = [*range(3, 100, 4), *range(2, 100, 4), *range(1, 100, 4), 0, 4, 8, 12, 16]
    assert [token_id for token_id, _ in entry.alternatives] == expected
