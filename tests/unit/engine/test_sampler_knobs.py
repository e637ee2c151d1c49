"""Every setting does what a plain reference does, one row and one token after the other.

Shapes: V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moestro.api.sampling import Sampling
from moestro.engine.guide import Guide
from moestro.engine.request import TokenScore
from moestro.engine.sampler import Penalties, Row, pick
from moestro.errors import ConfigError
from moestro.ops.noise import gumbel
from tests.unit.engine.picking import Masked, token


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row as a reader would write it down: all that goes into its token."""

    logits: list[float]
    sampling: Sampling
    seed: int = 0
    prompt: Sequence[int] = ()
    answer: Sequence[int] = ()
    num_drafts: int = 0
    stops: frozenset[int] = frozenset()
    allowed: list[bool] | None = None

    def row(self) -> Row:
        split = len(self.answer) - self.num_drafts
        penalties = None
        if self.sampling.has_penalties:
            penalties = Penalties(self.sampling, self.prompt)
            for token_id in self.answer[:split]:
                penalties.accept(token_id)
        return Row(
            sampling=self.sampling,
            seed=self.seed,
            position=len(self.answer),
            penalties=penalties,
            drafts=tuple(self.answer[split:]),
            stop_token_ids=self.stops,
            guide=None if self.allowed is None else Guide(Masked(self.allowed)),
        )


def reference(case: Case) -> int | None:
    """Pick as the definitions say, one token after the other; None if there is none."""
    logits = edited(case)
    best = max(logits)
    if best == -math.inf:
        return None
    if case.sampling.is_greedy:
        return logits.index(best)
    tempered = [
        float((np.float32(logit) - np.float32(best)) / np.float32(case.sampling.temperature))
        for logit in logits
    ]
    ids = sorted(range(len(logits)), key=lambda token_id: (-tempered[token_id], token_id))
    ids = [token_id for token_id in ids if tempered[token_id] > -math.inf]
    ids = ids[: case.sampling.top_k or len(ids)]
    ids = nucleus(ids, tempered, case.sampling.top_p)
    ids = [i for i in ids if math.exp(tempered[i]) >= case.sampling.min_p]
    noise = gumbel(np.array(ids), case.seed, len(case.answer))
    return ids[int(np.argmax(np.array([tempered[i] for i in ids]) + noise))]


def edited(case: Case) -> list[float]:
    sampling, V = case.sampling, len(case.logits)
    logits = np.array(case.logits, dtype=np.float32)
    for token_id in range(V):
        logits[token_id] += np.float32(sampling.logit_bias.get(token_id, 0.0))
        if token_id in (*case.prompt, *case.answer):
            factor = np.float32(sampling.repetition_penalty)
            logits[token_id] = (
                logits[token_id] / factor if logits[token_id] > 0 else logits[token_id] * factor
            )
        num = np.float32(list(case.answer).count(token_id))
        logits[token_id] -= np.float32(sampling.frequency_penalty) * num
        logits[token_id] -= np.float32(sampling.presence_penalty) * np.float32(num > 0)
        is_too_early = len(case.answer) < sampling.min_tokens and token_id in case.stops
        is_ruled_out = case.allowed is not None and not case.allowed[token_id]
        if is_too_early or is_ruled_out:
            logits[token_id] = -np.inf
    return [float(logit) for logit in logits]


def nucleus(ids: list[int], tempered: list[float], top_p: float) -> list[int]:
    if top_p == 1:
        return ids
    weights = [math.exp(tempered[i]) for i in ids]
    for num in range(1, len(ids)):
        if sum(weights[:num]) >= top_p * sum(weights):
            return ids[:num]
    return ids


@st.composite
def cases(draw: st.DrawFn) -> Case:
    V = draw(st.integers(1, 12))
    some_ids = st.lists(st.integers(0, V - 1), max_size=8)
    # A coarse grid makes ties, and no sum that lies on a border by accident of rounding.
    logits = [draw(st.integers(-40, 40)) / 8 for _ in range(V)]
    sampling = Sampling(
        temperature=draw(st.sampled_from([0.0, 1e-9, 0.3, 1.0, 2.5])),
        top_k=draw(st.sampled_from([0, 1, 2, 5, 100])),
        top_p=draw(st.sampled_from([1.0, 0.999, 0.9, 0.51, 0.1, 1e-6])),
        min_p=draw(st.sampled_from([0.0, 0.01, 0.3, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.5, 0.5])),
        presence_penalty=draw(st.sampled_from([0.0, 1.0, -0.5])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.25, -2.0])),
        logit_bias=draw(st.dictionaries(st.integers(0, V - 1), st.integers(-9, 9), max_size=3)),
        min_tokens=draw(st.sampled_from([0, 3])),
    )
    answer = draw(some_ids)
    return Case(
        logits=logits,
        sampling=sampling,
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        prompt=draw(some_ids),
        answer=answer,
        num_drafts=draw(st.integers(0, len(answer))),
        stops=frozenset(draw(some_ids)),
        allowed=draw(st.none() | st.lists(st.booleans(), min_size=V, max_size=V)),
    )


@settings(max_examples=250, deadline=None, derandomize=True)
@given(cases())
def test_every_knob_does_what_the_reference_does(case: Case) -> None:
    [outcome] = pick(torch.tensor([case.logits]), [case.row()])
    expected = reference(case)
    assert isinstance(outcome, ConfigError if expected is None else TokenScore)
    assert expected is None or token(outcome) == expected


def test_penalties_match_the_hand_computed_example() -> None:
    sampling = Sampling(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    penalties = Penalties(sampling, [0, 1, 1])
    for token_id in (1, 2, 2, 2):
        penalties.accept(token_id)
    logits_V = np.array([4.0, -1.0, 3.0, 5.0], dtype=np.float32)
    penalties.apply(logits_V)
    # 4 / 2; -1 * 2 - 0.5 - 0.25; 3 / 2 - 0.5 - 3 * 0.25; never seen.
    assert logits_V.tolist() == [2.0, -2.75, 0.25, 5.0]


def test_penalties_take_drafts_for_one_call_only() -> None:
    sampling = Sampling(repetition_penalty=2.0, frequency_penalty=1.0)
    penalties = Penalties(sampling, [0])
    assert applied(penalties, [8.0, 8.0, 8.0], drafts=(2, 2)) == [4.0, 8.0, 2.0]
    assert applied(penalties, [8.0, 8.0, 8.0]) == [4.0, 8.0, 8.0]
    penalties.accept(2)
    assert applied(penalties, [8.0, 8.0, 8.0]) == [4.0, 8.0, 3.0]


def test_penalties_follow_long_answers_and_empty_prompts() -> None:
    random = np.random.default_rng(0)
    answer = random.integers(0, 500, 2000).tolist()
    penalties = Penalties(Sampling(frequency_penalty=1.0), [])
    for token_id in answer:
        penalties.accept(token_id)
    assert applied(penalties, [0.0] * 500) == (-np.bincount(answer, minlength=500)).tolist()


def applied(penalties: Penalties, logits: list[float], drafts: tuple[int, ...] = ()) -> list[float]:
    logits_V: NDArray[np.float32] = np.array(logits, dtype=np.float32)
    penalties.apply(logits_V, drafts)
    return [float(logit) for logit in logits_V]
