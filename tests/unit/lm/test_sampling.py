"""Sampling is greedy at temperature 0 and follows the tempered distribution above it."""

import pytest
import torch

from moestro.lm.sampling import sample

LOGITS_V = torch.tensor([0.0, 2.0, 1.0])


def draw(temperature: float, count: int = 4000) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([sample(LOGITS_V, temperature, generator) for _ in range(count)])
    return (drawn.bincount(minlength=3) / count).tolist()


def test_temperature_zero_takes_the_likeliest() -> None:
    assert draw(0.0, 5) == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_shares_follow_the_tempered_distribution(temperature: float) -> None:
    expected = (LOGITS_V / temperature).softmax(dim=0).tolist()
    assert draw(temperature) == pytest.approx(expected, abs=0.03)


def test_a_seed_repeats_its_draws() -> None:
    first, second = (torch.Generator().manual_seed(4) for _ in range(2))
    assert [sample(LOGITS_V, 1.0, first) for _ in range(9)] == [
        sample(LOGITS_V, 1.0, second) for _ in range(9)
    ]
