"""The verifier: whether the weak model's answer stands, by its text and what the prompt promised.

A ridge regression of the strong model's gain over an answer's signs and both models' estimated
scores. It is learned where recordings hold the weak model's answers, and kept only if rows left
out say that it knows more than the prompt alone. A cascade that uses it asks the weak model first,
every time, and needs its whole answer. Next: calibrate.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moestro.policy.answers import SIGNS, read_answer

Floats = NDArray[np.float64]

# What the verifier goes by.
INPUTS = (*SIGNS, "weak_estimate", "strong_estimate")
STRENGTHS = (10.0, 30.0, 100.0, 300.0)
NUM_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Verifier:
    """Estimates, of an answer that the weak model gave, how much more the strong one would score.

    Inputs are put in standard deviations from the mean, at most 4.
    """

    center_I: Floats
    spread_I: Floats
    weights_I: Floats
    bias: float

    def gain(self, prompt: str, answer: str, estimates_M: Floats) -> float:
        """Return the estimated gain, -1 to 1; `estimates_M` are the pair's, from the prompt."""
        return float(self.gains(_inputs([prompt], [answer], estimates_M[None]))[0])

    def gains(self, inputs_NI: Floats) -> Floats:
        """Return the estimated gains of rows of inputs."""
        standard_NI = np.clip((inputs_NI - self.center_I) / self.spread_I, -4.0, 4.0)
        gains_N: Floats = np.clip(standard_NI @ self.weights_I + self.bias, -1.0, 1.0)
        return gains_N

    def to_dict(self) -> dict[str, Any]:
        """Return what policy.json keeps: by input its mean, its deviation and its weight."""
        rows = zip(self.center_I, self.spread_I, self.weights_I, strict=True)
        return {
            "bias": self.bias,
            "inputs": {n: [*map(float, row)] for n, row in zip(INPUTS, rows, strict=True)},
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "Verifier":
        """Rebuild a verifier; ValueError for one of other inputs."""
        if tuple(saved["inputs"]) != INPUTS:
            raise ValueError("the verifier has other inputs")
        table_I3 = np.array([saved["inputs"][name] for name in INPUTS], dtype=np.float64)
        bias = float(saved["bias"])
        if table_I3.shape != (len(INPUTS), 3) or not np.isfinite([*table_I3.ravel(), bias]).all():
            raise ValueError("the verifier holds what is not a number")
        center_I, spread_I, weights_I = table_I3.T
        return cls(center_I=center_I, spread_I=spread_I, weights_I=weights_I, bias=bias)


@dataclass(frozen=True, kw_only=True)
class AnswerCheck:
    """Keeps the weak model's answer to one prompt if the gain is below `threshold`."""

    verifier: Verifier
    prompt: str
    estimates_M: Floats
    threshold: float

    @property
    def reads_whole(self) -> bool:
        """An answer is judged when it is there; what is cut off looks wrong."""
        return True

    def accepts(self, answer: str, logprobs: Sequence[float]) -> bool:
        """Tell whether the answer is kept; one that says nothing is not."""
        return bool(answer.strip()) and (
            self.verifier.gain(self.prompt, answer, self.estimates_M) < self.threshold
        )


@dataclass(frozen=True)
class Verified:
    """A verifier, and the gains that fits without a row expected of it."""

    verifier: Verifier
    strength: float
    unseen_N: Floats


def learn_verifier(
    prompts: Sequence[str],
    answers: Sequence[str],
    unseen_NM: Floats,
    scores_NM: Floats,
    seed: int = 0,
) -> Verified | None:
    """Learn a verifier of a pair, or return None where answers do not tell more than prompts.

    `unseen_NM` are estimates of fits that lacked the rows, as those of new prompts will be.
    """
    inputs_NI, gains_N = _inputs(prompts, answers, unseen_NM), scores_NM[:, 1] - scores_NM[:, 0]
    folds_N = np.random.default_rng(seed).permutation(len(prompts)) % NUM_FOLDS
    best, unseen_N = _choose(inputs_NI, gains_N, folds_N)
    # What the estimates say by themselves, put on the same scale.
    blind_NI = inputs_NI * ~np.isin(INPUTS, SIGNS)
    _, by_prompt_N = _choose(blind_NI, gains_N, folds_N)
    better_N = (by_prompt_N - gains_N) ** 2 - (unseen_N - gains_N) ** 2
    if better_N.mean() <= 2.0 * better_N.std() / math.sqrt(len(better_N)):
        return None
    return Verified(_solve(inputs_NI, gains_N, best), best, unseen_N)


def _choose(inputs_NI: Floats, gains_N: Floats, folds_N: NDArray[np.int64]) -> tuple[float, Floats]:
    """Return the strength that does best on rows left out, and the gains it expects there."""
    unseen = {strength: np.zeros(len(gains_N)) for strength in STRENGTHS}
    for fold in range(NUM_FOLDS):
        inside, outside = folds_N != fold, folds_N == fold
        for strength in STRENGTHS:
            verifier = _solve(inputs_NI[inside], gains_N[inside], strength)
            unseen[strength][outside] = verifier.gains(inputs_NI[outside])
    best = min(STRENGTHS, key=lambda strength: float(((unseen[strength] - gains_N) ** 2).mean()))
    return best, unseen[best]


def _inputs(prompts: Sequence[str], answers: Sequence[str], estimates_NM: Floats) -> Floats:
    pairs = zip(prompts, answers, strict=True)
    return np.hstack([np.array([read_answer(p, a) for p, a in pairs]), estimates_NM])


def _solve(inputs_NI: Floats, gains_N: Floats, strength: float) -> Verifier:
    center_I = inputs_NI.mean(0)
    # What never varied in the recordings is no reason for anything.
    spread_I = np.maximum(inputs_NI.std(0), 0.02)
    standard_NI = np.clip((inputs_NI - center_I) / spread_I, -4.0, 4.0)
    bias = float(gains_N.mean())
    gram_II = standard_NI.T @ standard_NI + strength * np.eye(len(center_I))
    weights_I = np.linalg.solve(gram_II, standard_NI.T @ (gains_N - bias))
    return Verifier(center_I=center_I, spread_I=spread_I, weights_I=weights_I, bias=bias)
