"""What each model will score on a prompt: a linear estimate and a forest, added up.

Numpy only: this runs in gateways. Beside the estimate it says how far a prompt lies from those it
was learned from. Knows numbers, not names of models. Next: learn.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moestro.policy.features import Features, Ints
from moestro.policy.forest import Forest

Floats = NDArray[np.float32]

# Words share these places where topics are looked up, eight buckets each: a table of all buckets
# would be larger than a policy may be, and knows no more.
TOPIC_PLACES = 1 << 13


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Puts features on one scale: D buckets, and K topics that they are about.

    `rarity_D` weighs buckets, 0 for those too rare to learn from. `topics_HK` are the directions in
    which prompts' words differ most (latent semantic analysis), over H places that words share.
    `whiten_SS` and `far` draw the border of what was seen: a shape further from the mean than `far`
    is unfamiliar.
    """

    rarity_D: Floats
    topics_HK: Floats
    center_S: Floats
    spread_S: Floats
    whiten_SS: Floats
    far: float

    def text(self, features: Features) -> Floats:
        """Return the weight of each of the prompt's buckets: all prompts weigh the same."""
        weights = features.weights * self.rarity_D.take(features.buckets)
        length = float(np.sqrt(weights @ weights))
        if length > 0.0:
            weights /= length
        return weights

    def about(self, features: Features, text: Floats) -> Floats:
        """Return what a forest goes by, seen_F: the prompt's shape, then its topics."""
        places, signed = fold_words(features.buckets, text)
        return np.concatenate([features.shape, signed @ self.topics_HK.take(places, axis=0)])

    def distance(self, features: Features) -> float:
        """Return how far the shape lies from those seen; 1 is the border of the familiar."""
        whitened = (features.shape - self.center_S) / self.spread_S @ self.whiten_SS
        return float(np.sqrt(whitened @ whitened)) / self.far


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """Linear heads, one a model, over a prompt's buckets, and a forest over its shape and topics.

    The forest's values are deviations from the bias.
    """

    encoder: Encoder
    text_DM: Floats
    bias_M: Floats
    forest: Forest

    def estimate(self, features: Features) -> NDArray[np.float64]:
        """Return the score that each model is expected to have, 0 to 1."""
        weights = self.encoder.text(features)
        scores_M = weights @ self.text_DM.take(features.buckets, axis=0) + self.bias_M
        scores_M = scores_M + self.forest.estimate(self.encoder.about(features, weights))
        return scores_M.astype(np.float64).clip(0.0, 1.0)

    def of(self, places: Sequence[int]) -> "Estimator":
        """Return an estimator of these models, in this order."""
        return self._mapped(lambda heads: heads[..., places])

    def with_head(self, mixture_M: Floats, bias: float) -> "Estimator":
        """Add a head that is a mixture of those there are, and a constant."""
        mixture_M1 = mixture_M[:, None].astype(np.float32)
        grown = self._mapped(lambda heads: np.hstack([heads, heads @ mixture_M1]))
        return replace(
            grown, bias_M=np.append(self.bias_M, self.bias_M @ mixture_M + bias).astype(np.float32)
        )

    def _mapped(self, change: Callable[[Floats], Floats]) -> "Estimator":
        return replace(
            self,
            text_DM=change(self.text_DM),
            bias_M=change(self.bias_M[None])[0],
            forest=replace(self.forest, values_VM=change(self.forest.values_VM)),
        )


def fold_words(buckets: Ints, text: Floats) -> tuple[Ints, Floats]:
    """Return the place of each bucket among TOPIC_PLACES, and its weight with a sign.

    Signs make what shares a place cancel out in the mean rather than add up.
    """
    # TOPIC_PLACES is a power of two, and divisions are slow.
    is_negative = (buckets & TOPIC_PLACES).astype(bool)
    return buckets & (TOPIC_PLACES - 1), np.where(is_negative, -text, text)
