"""Outcomes become an estimator: ridge regression of all models' scores, its strength by folds.

The scores are learned jointly from the same features, so the difference of two estimates is the
regression of the gain itself. Solved by conjugate gradients over rows, which needs neither the
square of the buckets nor that of the rows. Only fitting imports scipy. Next: build.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moestro.errors import ConfigError
from moestro.policy.estimate import Encoder, Estimator
from moestro.policy.features import NUM_BUCKETS, Features
from moestro.policy.measures import Ranking

Floats = NDArray[np.float32]
Floats64 = NDArray[np.float64]
# A penalty and a share of the shape.
Way = tuple[float, float]

MIN_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """How an estimator is learned.

    `strengths` are the ridge penalties and `shape_weights` the shares of the shape beside words and
    letters, all tried in `num_folds` folds of the rows, or of their groups if there are as many;
    `num_waves` is the resolution of the shape, `wave_length` in standard deviations.
    """

    strengths: tuple[float, ...] = (12.0, 40.0)
    num_folds: int = 3
    shape_weights: tuple[float, ...] = (0.0, 0.5, 1.0)
    num_waves: int = 384
    wave_length: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.strengths or min(self.strengths) <= 0:
            raise ConfigError(f"strengths are {self.strengths}: give penalties above 0")
        if self.num_folds < 2:
            raise ConfigError(f"num_folds is {self.num_folds}: give at least 2")
        if self.num_waves < 1 or self.wave_length <= 0:
            raise ConfigError("num_waves and wave_length must be above 0")
        if not self.shape_weights or min(self.shape_weights) < 0:
            raise ConfigError(f"shape_weights are {self.shape_weights}: give shares from 0 on")


@dataclass(frozen=True)
class Learned:
    """An estimator, how it was made, and rows' scores as expected by fits that lacked them."""

    estimator: Estimator
    strength: float
    shape_weight: float
    unseen_NM: Floats64


def learn(
    features: Sequence[Features],
    scores_NM: Floats64,
    config: LearnConfig,
    groups_N: NDArray[np.int64] | None = None,
) -> Learned:
    """Learn to estimate every model's score, in the way that does best on what was left out.

    Rows of several groups are left out by whole groups: what helps only among prompts of known
    kinds must not hurt on new ones.
    """
    draw = np.random.default_rng(config.seed)
    rows_N = np.arange(len(features))
    ways = [(strength, share) for strength in config.strengths for share in config.shape_weights]
    is_grouped = groups_N is not None and len(np.unique(groups_N)) >= config.num_folds
    units_N = groups_N if groups_N is not None and is_grouped else rows_N
    unseen = _leave_out(features, scores_NM, ways, config, _folds(units_N, config, draw))
    best = max(ways, key=lambda way: _value(unseen[way], scores_NM))
    if is_grouped:
        folds_N = _folds(rows_N, config, draw)
        unseen = _leave_out(features, scores_NM, [best], config, folds_N)
    return Learned(_Table(features, config).solve(scores_NM, *best), *best, unseen[best])


def _folds(
    units_N: NDArray[np.int64], config: LearnConfig, draw: np.random.Generator
) -> NDArray[np.int64]:
    """Put whole units into folds at random."""
    _, unit_N = np.unique(units_N, return_inverse=True)
    return (draw.permutation(int(unit_N.max()) + 1) % config.num_folds)[unit_N]


def _leave_out(
    features: Sequence[Features],
    scores_NM: Floats64,
    ways: Sequence[Way],
    config: LearnConfig,
    folds_N: NDArray[np.int64],
) -> dict[Way, Floats64]:
    """Estimate every fold by fits without it, once for each penalty and share of the shape."""
    unseen = {way: np.zeros_like(scores_NM) for way in ways}
    for fold in range(config.num_folds):
        inside = [int(i) for i in np.flatnonzero(folds_N != fold)]
        outside = [int(i) for i in np.flatnonzero(folds_N == fold)]
        table = _Table([features[i] for i in inside], config)
        for way in ways:
            estimator = table.solve(scores_NM[inside], *way)
            for i in outside:
                unseen[way][i] = estimator.estimate(features[i])
    return unseen


def _value(estimates_NM: Floats64, scores_NM: Floats64) -> float:
    """Tell how good estimates are: for a pair by the order they give, else by squared error."""
    num_models = scores_NM.shape[1]
    means_M = scores_NM.mean(0)
    if num_models == 2 and means_M[0] < means_M[1]:
        gains_N = estimates_NM[:, 1] - estimates_NM[:, 0]
        return Ranking(gains_N, *scores_NM.T).curve().apgr()
    # Choices need differences between models; how hard a prompt is for all of them cancels out.
    wrong_NM = estimates_NM - scores_NM
    return -float(np.var(wrong_NM - wrong_NM.mean(1, keepdims=True)))


class _Table:
    """The rows of a fit as matrices, and the encoder that made them."""

    def __init__(self, features: Sequence[Features], config: LearnConfig) -> None:
        from scipy import sparse  # type: ignore[import-untyped]

        self._encoder = fit_encoder(features, config)
        texts = [self._encoder.text(row) for row in features]
        ends = np.cumsum([0, *map(len, texts)])
        places = np.concatenate([row.buckets for row in features])
        self._text_ND: Any = sparse.csr_matrix(
            (np.concatenate(texts), places, ends), shape=(len(features), NUM_BUCKETS)
        )
        self._text_DN = self._text_ND.T.tocsr()
        self._shape_NR = np.stack([self._encoder.shape(row) for row in features])

    def solve(self, scores_NM: Floats64, strength: float, shape_weight: float) -> Estimator:
        """Return the ridge regression of the scores with this penalty and share of the shape."""
        bias_M = scores_NM.mean(0)
        target_NM = (scores_NM - bias_M).astype(np.float32)
        dual_NM = self._descend(target_NM, np.float32(strength), np.float32(shape_weight))
        # Waves have a mean of their own, which the bias takes up.
        shape_RM = np.float32(shape_weight**2) * (self._shape_NR.T @ dual_NM)
        text_DM = np.asarray(self._text_DN @ dual_NM, dtype=np.float16).astype(np.float32)
        return Estimator(
            encoder=self._encoder,
            text_DM=text_DM,
            shape_RM=shape_RM.astype(np.float32),
            bias_M=bias_M.astype(np.float32),
        )

    def _descend(self, target_NM: Floats, strength: np.float32, share: np.float32) -> Floats:
        """Solve (K + strength) dual = target by conjugate gradients, all columns at once."""
        dual, rest = np.zeros_like(target_NM), target_NM.copy()
        step, size_M = rest.copy(), (rest * rest).sum(0)
        enough_M = 1e-6 * size_M
        for _ in range(100):
            if np.all(size_M <= enough_M):
                break
            image = self._text_ND @ (self._text_DN @ step)
            image += strength * step
            if share > 0:
                image += share * share * (self._shape_NR @ (self._shape_NR.T @ step))
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
