"""The policy: a prompt in, a decision out, in less than a millisecond. Read first.

A pair sends a request to the strong model if its estimated gain reaches the threshold; a pool takes
the cheapest model whose estimated loss against the strongest stays below it. Without a threshold
(before `moestro policy calibrate`) a pair always asks the strongest, and a pool the model with the
highest estimate. A prompt unlike all it learned from goes to the strongest. With a cascade the weak
model of a pair answers first, and what it said decides. Next: features.py.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moestro.errors import ConfigError
from moestro.policy.cascade import CascadeRule
from moestro.policy.estimate import Estimator
from moestro.policy.features import Features, read
from moestro.policy.prices import Price
from moestro.policy.seen import SeenPrompts
from moestro.policy.verify import AnswerCheck, Verifier

Floats = NDArray[np.float64]
PolicyKind = Literal["pair", "pool"]

# The gain of an unfamiliar prompt: above every threshold.
UNFAMILIAR = 2.0


@dataclass(frozen=True)
class Decision:
    """Which model answers, and why; `scores` are estimates, `fallbacks` the best first.

    `signs` are what a ShiftMonitor sees of the request.
    """

    model: str
    reason: str
    scores: Mapping[str, float]
    threshold: float | None
    digest: str
    fallbacks: tuple[str, ...]
    signs: Mapping[str, float] = field(default_factory=dict)
    cascade: CascadeRule | AnswerCheck | None = None


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What was learned. Immutable, so that threads may share it; the strongest model is last.

    `evidence` is what the threshold rests on, `curve` the cost and quality of other choices; `seen`
    are the prompts learned from. If `checks_answers`, the threshold is one on the gains that the
    verifier sees in answers.
    """

    kind: PolicyKind
    models: tuple[str, ...]
    estimator: Estimator
    prices: Mapping[str, Price] = field(default_factory=dict)
    threshold: float | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    curve: Sequence[Mapping[str, Any]] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    seen: SeenPrompts = field(default_factory=SeenPrompts)
    cascade: CascadeRule | None = None
    verifier: Verifier | None = None
    checks_answers: bool = False

    @property
    def asks_weak_first(self) -> bool:
        """Whether the weak model of the pair answers first: a cascade."""
        return self.cascade is not None or self.checks_answers

    @property
    def strongest(self) -> str:
        """The model that all others are compared with."""
        return self.models[-1]

    def decide(self, prompt: str, allowed: Collection[str]) -> Decision:
        """Choose one of the models allowed."""
        places = [place for place, name in enumerate(self.models) if name in allowed]
        if not places:
            raise ConfigError(
                f"none of {', '.join(sorted(allowed)) or 'no models'} is known to the policy: it "
                f"knows {', '.join(self.models)}"
            )
        features = read(prompt)
        scores_M = self.estimator.estimate(features)
        scores = scores_M.tolist()
        distance = self.estimator.encoder.distance(features)
        place, reason = self._choose(scores, distance, places, len(prompt))
        others = sorted((p for p in places if p != place), key=lambda p: -scores[p])
        return Decision(
            model=self.models[place],
            reason=reason,
            scores={self.models[p]: round(scores[p], 4) for p in places},
            threshold=self.threshold,
            digest=features.digest,
            fallbacks=tuple(self.models[p] for p in others),
            signs=_signs(scores),
            cascade=self._cascade(prompt, scores_M) if place == 0 else None,
        )

    def gains(self, prompts: Sequence[str]) -> Floats:
        """Return, by prompt and model, what the strongest is estimated to score more.

        Rows of prompts unlike the training data hold UNFAMILIAR, but 0 for the strongest itself.
        """
        rows = [read(prompt) for prompt in prompts]
        scores_NM = np.array([self.estimator.estimate(row) for row in rows])
        gains_NM: Floats = scores_NM[:, -1:] - scores_NM
        far_N = np.array([self.is_unfamiliar(row) for row in rows], dtype=bool)
        gains_NM[far_N, :-1] = UNFAMILIAR
        return gains_NM

    def signs(self, prompts: Sequence[str]) -> list[dict[str, float]]:
        """Return what a ShiftMonitor sees of each prompt."""
        return [_signs(self.estimator.estimate(read(prompt)).tolist()) for prompt in prompts]

    def answer_gains(self, prompts: Sequence[str], answers: Sequence[str]) -> Floats:
        """Return what the strong model is estimated to score more than the weak one's answers do.

        UNFAMILIAR where a prompt is unlike the training data: there the strong one is asked.
        """
        assert self.verifier is not None
        gains_N = np.full(len(prompts), UNFAMILIAR)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            features = read(prompt)
            if answer.strip() and not self.is_unfamiliar(features):
                scores_M = self.estimator.estimate(features)
                gains_N[row] = self.verifier.gain(prompt, answer, scores_M)
        return gains_N

    def is_unfamiliar(self, features: Features) -> bool:
        """Tell whether a prompt is unlike all that the policy learned from."""
        return self.estimator.encoder.distance(features) > 1.0

    def costs_usd(self, num_chars: int) -> Floats:
        """Return what a prompt of this length costs with each model; 0 where no price is known."""
        free = Price()
        return np.array([self.prices.get(m, free).cost_usd(num_chars) for m in self.models])

    def with_threshold(
        self,
        threshold: float,
        evidence: Mapping[str, Any],
        cascade: CascadeRule | None = None,
        checks_answers: bool = False,
    ) -> "Policy":
        """Return a policy with a calibrated threshold: on gains, or on what a cascade goes by."""
        return replace(
            self,
            threshold=threshold,
            evidence=evidence,
            cascade=cascade,
            checks_answers=checks_answers,
        )

    def _cascade(self, prompt: str, scores_M: Floats) -> CascadeRule | AnswerCheck | None:
        if not self.checks_answers:
            return self.cascade
        assert self.verifier is not None
        assert self.threshold is not None
        return AnswerCheck(
            verifier=self.verifier, prompt=prompt, estimates_M=scores_M, threshold=self.threshold
        )

    def _choose(
        self, scores: Sequence[float], distance: float, places: Sequence[int], num_chars: int
    ) -> tuple[int, str]:
        strongest = places[-1]
        if self.cascade is not None and len(places) == len(self.models):
            return 0, "cascade: the weak model first"
        if len(places) == 1:
            return strongest, "the only model allowed"
        if distance > 1.0:
            return strongest, (
                f"the prompt is unlike the training data ({distance:.1f} times as far as the "
                "border): the strongest model allowed"
            )
        if self.checks_answers:
            return 0, "cascade: the weak model first"
        if self.threshold is None:
            if self.kind == "pair":
                return strongest, "the policy is not calibrated: the strongest model allowed"
            best = max(places, key=lambda p: scores[p])
            return best, f"highest estimated score, {scores[best]:.2f}"
        gains = {place: scores[strongest] - scores[place] for place in places}
        near = [p for p in places if p != strongest and gains[p] < self.threshold]
        if not near:
            gain = min(gains[p] for p in places if p != strongest)
            return (
                strongest,
                f"estimated gain {gain:.3f} reaches the threshold {self.threshold:.3f}",
            )
        costs_M = self.costs_usd(num_chars)
        place = min(near, key=lambda p: (costs_M[p], gains[p]))
        return place, (
            f"cheapest with an estimated loss of {gains[place]:.3f}, below the threshold "
            f"{self.threshold:.3f}"
        )


def _signs(scores: Sequence[float]) -> dict[str, float]:
    """Return what decides a request's fate: the smallest gain over another model, and the score.

    Of all models, whichever may be asked just now.
    """
    *others, strongest = scores
    return {"gain": strongest - max(others), "score": strongest}
