"""Outcomes become an estimator: ridge regression of all models' scores, and a forest of the shape.

Both learn all scores from the same features, so the difference of two estimates is the regression
of the gain itself. The forest carries to subjects never seen, which text does not; text knows those
that were. The ridge, its strength chosen by folds, is solved by conjugate gradients over rows,
which needs neither the square of the buckets nor that of the rows. Next: build.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moestro.errors import ConfigError
from moestro.policy.estimate import Encoder, Estimator
from moestro.policy.features import NUM_BUCKETS, Features
from moestro.policy.forest import ForestConfig, grow_forest

Floats = NDArray[np.float32]

MIN_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """How an estimator is learned.

    `strengths` are the ridge penalties tried in `num_folds` folds of the rows given; `shape_weight`
    is the share of the shape beside words and letters, `num_waves` its resolution, `wave_length`
    in standard deviations. `forest_share` of every estimate is the forest's.
    """

    strengths: tuple[float, ...] = (8.0, 20.0, 64.0)
    num_folds: int = 3
    shape_weight: float = 0.5
    num_waves: int = 384
    wave_length: float = 1.0
    forest_share: float = 0.75
    forest: ForestConfig = field(default_factory=ForestConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.strengths or min(self.strengths) <= 0:
            raise ConfigError(f"strengths are {self.strengths}: give penalties above 0")
        if self.num_folds < 2:
            raise ConfigError(f"num_folds is {self.num_folds}: give at least 2")
        if self.num_waves < 1 or self.wave_length <= 0 or self.shape_weight < 0:
            raise ConfigError("num_waves and wave_length must be above 0, shape_weight from 0 on")
        if not 0.0 <= self.forest_share <= 1.0:
            raise ConfigError(f"forest_share is {self.forest_share:g}: give a share from 0 to 1")


@dataclass(frozen=True)
class Learned:
    """An estimator, its penalty, and what rows' scores were expected by fits that lacked them."""

    estimator: Estimator
    strength: float
    unseen_NM: NDArray[np.float64]


def learn(
    features: Sequence[Features], scores_NM: NDArray[np.float64], config: LearnConfig
) -> Learned:
    """Learn to estimate every model's score, with the penalty that does best on rows left out."""
    num_rows = len(features)
    folds_N = np.random.default_rng(config.seed).permutation(num_rows) % config.num_folds
    unseen = {strength: np.zeros_like(scores_NM) for strength in config.strengths}
    for fold in range(config.num_folds):
        inside = [int(i) for i in np.flatnonzero(folds_N != fold)]
        outside = [int(i) for i in np.flatnonzero(folds_N == fold)]
        table = _Table([features[i] for i in inside], scores_NM[inside], config)
        for strength in config.strengths:
            estimator = table.solve(strength)
            for i in outside:
                unseen[strength][i] = estimator.estimate(features[i])
    errors = {strength: _error(values, scores_NM) for strength, values in unseen.items()}
    best = min(errors, key=lambda strength: errors[strength])
    estimator = _Table(features, scores_NM, config).solve(best)
    return Learned(estimator, best, unseen[best])


def _error(estimates_NM: NDArray[np.float64], scores_NM: NDArray[np.float64]) -> float:
    # Choices need differences between models; how hard a prompt is for all of them cancels out.
    wrong_NM = estimates_NM - scores_NM
    return float(np.var(wrong_NM - wrong_NM.mean(1, keepdims=True)))


class _Table:
    """The rows of a fit as matrices, the encoder that made them, and the forest grown on them."""

    def __init__(
        self, features: Sequence[Features], scores_NM: NDArray[np.float64], config: LearnConfig
    ) -> None:
        from scipy import sparse  # type: ignore[import-untyped]

        self._bias_M = scores_NM.mean(0)
        self._target_NM = (scores_NM - self._bias_M).astype(np.float32)
        self._linear_share = np.float32(1.0 - config.forest_share)
        shapes_NS = np.stack([row.shape for row in features])
        self._forest = grow_forest(
            shapes_NS, config.forest_share * self._target_NM, config.forest, config.seed
        )
        self._weight = np.float32(config.shape_weight)
        self._encoder = fit_encoder(features, config)
        texts = [self._encoder.text(row) for row in features]
        ends = np.cumsum([0, *map(len, texts)])
        places = np.concatenate([row.buckets for row in features])
        self._text_ND: Any = sparse.csr_matrix(
            (np.concatenate(texts), places, ends), shape=(len(features), NUM_BUCKETS)
        )
        self._text_DN = self._text_ND.T.tocsr()
        self._shape_NR = self._weight * np.stack([self._encoder.shape(row) for row in features])

    def solve(self, strength: float) -> Estimator:
        """Return the estimator whose ridge regression has this penalty."""
        target_NM = self._linear_share * self._target_NM
        dual_NM = self._descend(target_NM, np.float32(strength))
        # Waves have a mean of their own, which the bias takes up.
        shape_RM = self._weight * (self._shape_NR.T @ dual_NM)
        text_DM = np.asarray(self._text_DN @ dual_NM, dtype=np.float16).astype(np.float32)
        return Estimator(
            encoder=self._encoder,
            text_DM=text_DM,
            shape_RM=shape_RM.astype(np.float32),
            bias_M=self._bias_M.astype(np.float32),
            forest=self._forest,
        )

    def _descend(self, target_NM: Floats, strength: np.float32) -> Floats:
        """Solve (K + strength) dual = target by conjugate gradients, all columns at once."""
        dual, rest = np.zeros_like(target_NM), target_NM.copy()
        step, size_M = rest.copy(), (rest * rest).sum(0)
        enough_M = 1e-6 * size_M
        for _ in range(100):
            if np.all(size_M <= enough_M):
                break
            image = self._text_ND @ (self._text_DN @ step)
            image += self._shape_NR @ (self._shape_NR.T @ step) + strength * step
            part_M = size_M / np.maximum((step * image).sum(0), 1e-30)
            dual += part_M * step
            rest -= part_M * image
            grown_M = (rest * rest).sum(0)
            step = rest + grown_M / np.maximum(size_M, 1e-30) * step
            size_M = grown_M
        return dual


def fit_encoder(features: Sequence[Features], config: LearnConfig) -> Encoder:
    """Learn how rare buckets are and how shapes spread."""
    counts_D = np.zeros(NUM_BUCKETS)
    for row in features:
        counts_D[row.buckets] += 1
    rarity_D = np.where(counts_D >= 2, np.log((len(features) + 1) / np.maximum(counts_D, 1)), 0.0)
    shapes_NS = np.stack([row.shape for row in features]).astype(np.float64)
    center_S, spread_S = shapes_NS.mean(0), shapes_NS.std(0)
    # A measure that never varied still tells the unfamiliar from the familiar, but not by a hair.
    spread_S = np.maximum(spread_S, 0.05)
    standard_NS = (shapes_NS - center_S) / spread_S
    draw = np.random.default_rng(config.seed)
    num_shapes = shapes_NS.shape[1]
    size = config.wave_length * np.sqrt(num_shapes / 10.0)
    whiten_SS = _whiten(standard_NS)
    distances_N = np.sqrt(((standard_NS @ whiten_SS) ** 2).sum(1))
    return Encoder(
        rarity_D=rarity_D.astype(np.float16).astype(np.float32),
        center_S=center_S.astype(np.float32),
        spread_S=spread_S.astype(np.float32),
        waves_SR=(draw.standard_normal((num_shapes, config.num_waves)) / size).astype(np.float32),
        phases_R=draw.uniform(0.0, 2.0 * np.pi, config.num_waves).astype(np.float32),
        whiten_SS=whiten_SS.astype(np.float32),
        far=float(np.quantile(distances_N, 0.999)) * 1.1,
    )


def _whiten(standard_NS: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the square root of the inverse covariance, shrunk so that it always exists."""
    covariance_SS = standard_NS.T @ standard_NS / len(standard_NS)
    values_S, vectors_SS = np.linalg.eigh(covariance_SS + 0.1 * np.eye(len(covariance_SS)))
    whitened: NDArray[np.float64] = vectors_SS / np.sqrt(values_S)
    return whitened
