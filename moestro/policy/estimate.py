"""What each model will score on a prompt: a linear estimate and a forest, added up.

Numpy only: this runs in gateways. Beside the estimate it says how far a prompt lies from those it
was learned from. Knows numbers, not names of models. Next: learn.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moestro.policy.features import WORD_BUCKETS, Features
from moestro.policy.forest import Forest

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Puts features on one scale: D buckets, and R waves (random Fourier features) of the shape.

    `rarity_D` weighs buckets, 0 for those too rare to learn from. `whiten_SS` and `far` draw the
    border of what was seen: a shape further from the mean than `far` is unfamiliar.
    """

    rarity_D: Floats
    center_S: Floats
    spread_S: Floats
    waves_SR: Floats
    phases_R: Floats
    whiten_SS: Floats
    far: float

    def text(self, features: Features) -> Floats:
        """Return the weight of each of the prompt's buckets; words and letters weigh the same."""
        weights = features.weights * self.rarity_D.take(features.buckets)
        num_words = int(np.searchsorted(features.buckets, WORD_BUCKETS))
        for part in (weights[:num_words], weights[num_words:]):
            length = float(np.sqrt(part @ part))
            if length > 0.0:
                part /= length
        return weights

    def shape(self, features: Features) -> Floats:
        """Return the waves of the prompt's shape."""
        scale = np.float32(np.sqrt(2.0 / len(self.phases_R)))
        waves: Floats = np.cos(self.standard(features) @ self.waves_SR + self.phases_R)
        return scale * waves

    def standard(self, features: Features) -> Floats:
        """Return the shape in standard deviations from the mean, at most 4."""
        standard: Floats = ((features.shape - self.center_S) / self.spread_S).clip(-4.0, 4.0)
        return standard

    def distance(self, features: Features) -> float:
        """Return how far the shape lies from those seen; 1 is the border of the familiar."""
        whitened = (features.shape - self.center_S) / self.spread_S @ self.whiten_SS
        return float(np.sqrt(whitened @ whitened)) / self.far


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """Linear heads, one a model, over what an encoder gives, and a forest over the shape.

    The forest's values are deviations from the bias.
    """

    encoder: Encoder
    text_DM: Floats
    shape_RM: Floats
    bias_M: Floats
    forest: Forest

    def estimate(self, features: Features) -> NDArray[np.float64]:
        """Return the score that each model is expected to have, 0 to 1."""
        weights = self.encoder.text(features)
        scores_M = weights @ self.text_DM.take(features.buckets, axis=0)
        scores_M = scores_M + self.encoder.shape(features) @ self.shape_RM + self.bias_M
        scores_M = scores_M + self.forest.estimate(features.shape)
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
            shape_RM=change(self.shape_RM),
            bias_M=change(self.bias_M[None])[0],
            forest=replace(self.forest, values_VM=change(self.forest.values_VM)),
        )
