"""Rows to pick from, and their tokens without the errors that the tests here do not expect.

Shapes: N rows, V vocabulary.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from moestro.api.sampling import Sampling
from moestro.engine.request import TokenScore
from moestro.engine.sampler import Penalties, Row, pick

GREEDY = Sampling(temperature=0)


def mixed_rows(num: int, V: int) -> tuple[Tensor, list[Row]]:
    torch.manual_seed(3)
    logits_NV = torch.randn(num, V) * 3
    samplings = [
        Sampling(),
        GREEDY,
        Sampling(temperature=0.6, top_p=0.9),
        Sampling(top_k=20, top_p=0.95, min_p=0.02),
        Sampling(temperature=1.5, min_p=0.05, repetition_penalty=1.2),
        Sampling(top_p=0.999, presence_penalty=0.5, frequency_penalty=0.1, logit_bias={5: 4.0}),
    ]
    prompt = list(range(0, V, 7))
    rows = [
        Row(
            sampling=sampling,
            seed=100 + i,
            position=i,
            penalties=Penalties(sampling, prompt) if sampling.has_penalties else None,
            top_logprobs=(None, 0, 5)[i % 3],
        )
        for i, sampling in enumerate(samplings * (num // len(samplings)))
    ]
    return logits_NV, rows


def greedy_row() -> Row:
    return Row(sampling=GREEDY, seed=0, position=0)


def tokens(outcomes: Iterable[object]) -> list[int]:
    return [token(outcome) for outcome in outcomes]


def token(outcome: object) -> int:
    assert isinstance(outcome, TokenScore)
    return outcome.token_id


def draws(logits: Sequence[float], sampling: Sampling, num: int, seed: int = 0) -> list[int]:
    rows = [Row(sampling=sampling, seed=seed, position=i) for i in range(num)]
    return tokens(pick(torch.tensor(logits).repeat(num, 1), rows))


class Masked:
    """Rules that allow the same tokens at any place, and count what they were asked."""

    def __init__(self, allowed: Sequence[bool]) -> None:
        self.num_masks = 0
        self._allowed = list(allowed)

    def offer(self, token_id: int) -> bool:
        """Whether this token may come next."""
        return self._allowed[token_id]

    def mask(self) -> bytes:
        """Whether each token of the vocabulary may."""
        self.num_masks += 1
        return pack_bits(self._allowed)


def pack_bits(is_allowed: Sequence[bool]) -> bytes:
    """Return a bit for each token, the lowest id's first, in whole 32-bit words."""
    padded = [*is_allowed, *[False] * (-len(is_allowed) % 32)]
    return np.packbits(padded, bitorder="little").tobytes()
