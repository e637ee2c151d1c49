"""Answers that are drawn with drafts follow the model's own distribution, as without them.

In process, because it takes thousands of answers. Next: moestro/engine/draft.py.
"""

from collections import Counter

import pytest
import torch

from moestro.api.sampling import Sampling
from moestro.engine.config import CacheConfig, DraftConfig, EngineConfig
from moestro.engine.engine import Engine
from moestro.engine.request import EngineRequest, TokensEvent
from moestro.ops.rows import RowMultiples
from tests.builders import linear_budget, random_model, tiny_config

SHAPE = tiny_config(vocab_size=8, num_nextn_predict_layers=1)
MODEL = random_model(SHAPE.with_budget(linear_budget(SHAPE)), seed=3)
PROMPT = (3, 1, 4, 1, 5)
NUM_ANSWERS = 1200
TEMPERATURE = 2.5
# What chi-square passes once in ten thousand times, with 63 degrees of freedom.
CRITICAL = 114.0

Pair = tuple[int, int]


def draw(mode: str, seed: int, experts: float | None) -> tuple[Counter[Pair], Engine]:
    """Draw answers of seeds that follow one another; count their first two tokens."""
    config = EngineConfig(
        max_batch=128,
        cache=CacheConfig(block_size=16, num_tokens=16384),
        draft=DraftConfig(mode=mode),
    )
    engine = Engine(MODEL, config, multiples=RowMultiples())
    engine.submit(
        EngineRequest(
            id="all",
            prompt=PROMPT,
            # The second token is guessed while there is a third to be made of the guess.
            max_tokens=3,
            num_choices=NUM_ANSWERS,
            sampling=Sampling(temperature=TEMPERATURE, seed=seed),
            experts=experts,
        )
    )
    answers: dict[int, list[int]] = {}
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, TokensEvent):
                own = answers.setdefault(event.choice, [])
                own.extend(score.token_id for score in event.scores)
    assert {len(tokens) for tokens in answers.values()} == {3}
    return Counter((tokens[0], tokens[1]) for tokens in answers.values()), engine


def expect(experts: float | None) -> dict[Pair, float]:
    """Compute how likely each pair of tokens is."""
    firsts = following(PROMPT, experts)
    return {
        (first, second): share * other
        for first, share in firsts.items()
        for second, other in following((*PROMPT, first), experts).items()
    }


def following(tokens: tuple[int, ...], experts: float | None) -> dict[int, float]:
    with torch.no_grad():
        hidden_BSD = MODEL(torch.tensor([tokens]), budget=experts)
        logits_V = MODEL.logits(hidden_BSD[0, -1:])[0]
    return dict(enumerate((logits_V / TEMPERATURE).softmax(dim=0).tolist()))


def chi_square(counts: Counter[Pair], shares: dict[Pair, float]) -> float:
    total = counts.total()
    return sum(
        (counts[pair] - share * total) ** 2 / (share * total) for pair, share in shares.items()
    )


@pytest.mark.parametrize("experts", [None, 2.0])
def test_answers_with_drafts_follow_the_models_distribution(experts: float | None) -> None:
    shares = expect(experts)
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) * NUM_ANSWERS > 5
    drafted, engine = draw("always", 0, experts)
    stats = engine.stats()
    # Some guesses are right and some wrong, so that both ways to a second token are taken.
    assert 0.02 < stats.accepted_draft_tokens / NUM_ANSWERS < 0.98
    plain, _ = draw("off", NUM_ANSWERS, experts)
    assert chi_square(drafted, shares) < CRITICAL
    assert chi_square(plain, shares) < CRITICAL
    assert drafted != plain
