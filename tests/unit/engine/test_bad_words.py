"""Bad words: their last token is out of reach where the rest of them stands, and only there."""

import pytest
import torch

from moestro.api.sampling import Sampling
from moestro.engine.answer import Answer
from moestro.engine.request import Work
from moestro.engine.sampler import Row, pick
from moestro.errors import ConfigError
from tests.unit.engine.picking import GREEDY, tokens
from tests.unit.engine.sequences import build_sequence

WORDS = ((5,), (1, 2), (1, 1, 3))


def answer(written: list[int], drafts: list[int] | None = None) -> Answer:
    sequence = build_sequence([1, 1], bad_words=WORDS, sampling=GREEDY, max_tokens=20)
    sequence.tokens += written
    sequence.drafts = drafts or []
    return Answer(sequence, None)


@pytest.mark.parametrize(
    ("written", "banned"),
    [
        ([], [5]),
        ([4], [5]),
        ([1], [5, 2]),
        ([1, 1], [5, 2, 3]),
        ([1, 4], [5]),
        ([4, 4, 1, 1], [5, 2, 3]),
    ],
)
def test_a_word_counts_within_the_answer_and_not_across_its_beginning(
    written: list[int], banned: list[int]
) -> None:
    assert list(answer(written).next_row().banned) == banned


def test_a_draft_counts_as_written_for_what_follows_it() -> None:
    drafted = answer([1], drafts=[1, 4])
    work = Work(sequence=drafted.sequence, start=2, end=5)
    assert [list(row.banned) for row in drafted.rows(work)] == [[5, 2], [5, 2, 3], [5]]


def test_a_banned_token_is_not_picked_however_likely_it_is() -> None:
    logits_NV = torch.tensor([[0.0, 0.0, 9.0, 1.0, 0.0, 10.0]])
    assert tokens(pick(logits_NV, [answer([1]).next_row()])) == [3]
    assert tokens(pick(logits_NV, [answer([4]).next_row()])) == [2]


def test_no_burst_runs_past_a_bad_word() -> None:
    assert answer([4]).num_ahead == 1
    plain = build_sequence([1, 1], sampling=Sampling(), max_tokens=20)
    assert Answer(plain, None).num_ahead == 20


def test_a_grammar_that_leaves_nothing_but_a_bad_word_ends_its_request() -> None:
    [outcome] = pick(
        torch.zeros(1, 6), [Row(sampling=GREEDY, seed=0, position=3, banned=[5], forced=5)]
    )
    assert isinstance(outcome, ConfigError)
    assert "no token is left to be token 3" in str(outcome)
