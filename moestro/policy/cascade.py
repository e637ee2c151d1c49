"""The cascade: the small model answers first, and its own log-probabilities say whether that stays.

Its *doubt* of an answer is 1 minus the geometric mean of its tokens' probabilities, over the first
tokens only, so that a stream and a whole answer are judged alike and a stream before its first
byte. `moestro policy calibrate` chooses how much doubt is too much, by the same test as a
threshold on estimated gains. Where answers were recorded instead, see verify.py. Next:
guarantee.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# As many as a gateway waits for by default before it lets a stream go on.
DECIDE_AFTER_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class CascadeRule:
    """Keeps an answer if its doubt is below `threshold`; looks at `num_tokens` of it at most."""

    threshold: float
    num_tokens: int = DECIDE_AFTER_TOKENS

    @property
    def reads_whole(self) -> bool:
        """An answer's first tokens say enough."""
        return False

    def accepts(self, answer: str, logprobs: Sequence[float]) -> bool:
        """Tell whether the small model's answer is kept; one that says nothing is not."""
        return bool(logprobs) and doubt(mean_logprob(logprobs, self.num_tokens)) < self.threshold

    def to_dict(self) -> dict[str, Any]:
        """Return what policy.json keeps."""
        return {"threshold": self.threshold, "num_tokens": self.num_tokens}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "CascadeRule":
        """Rebuild a rule."""
        return cls(threshold=float(saved["threshold"]), num_tokens=int(saved["num_tokens"]))


def mean_logprob(logprobs: Sequence[float], num_tokens: int = DECIDE_AFTER_TOKENS) -> float:
    """Return the mean log-probability of an answer's first tokens."""
    first = logprobs[:num_tokens]
    return sum(first) / len(first)


def doubt(logprob: float) -> float:
    """Return how unsure a model is, 0 to 1, by its mean log-probability."""
    return 1.0 - math.exp(min(logprob, 0.0))
