"""Outcomes become an estimator: ridge regression of all models' scores, and a forest beside it.

Both learn all scores from the same features, so the difference of two estimates is the regression
of the gain itself. The forest goes by a prompt's shape, which carries to subjects never seen, and
by its topics; the ridge by all its words, which know those that were seen. Its
strength is chosen by folds; conjugate gradients over rows solve it without the square of the
buckets nor that of the rows. Next: build.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moestro.errors import ConfigError
from moestro.policy.estimate import TOPIC_PLACES, Encoder, Estimator, fold_words
from moestro.policy.features import NUM_BUCKETS, Features, Ints
from moestro.policy.forest import ForestConfig, grow_forest

Floats = NDArray[np.float32]

MIN_ROWS = 20
_ROWS_PER_TOPIC = 10


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """How an estimator is learned."""

    strengths: tuple[float, ...] = (4.0, 10.0, 32.0)
    """The ridge penalties tried. Limits: above 0 each."""
    num_folds: int = 3
    """Folds of the rows given, in which they are tried. Limits: 2 or more."""
    num_topics: int = 48
    """Topics of a prompt that the forest is given, or fewer where rows are few.
    Limits: 1 or more."""
    forest_share: float = 0.85
    """The forest's share of every estimate. Limits: 0 to 1."""
    forest: ForestConfig = field(default_factory=ForestConfig)
    seed: int = 0
    """Decides folds and trees."""

    def __post_init__(self) -> None:
        if not self.strengths or min(self.strengths) <= 0:
            raise ConfigError(f"strengths are {self.strengths}: give penalties above 0")
        if self.num_folds < 2:
            raise ConfigError(f"num_folds is {self.num_folds}: give at least 2")
        if self.num_topics < 1:
            raise ConfigError(f"num_topics is {self.num_topics}: give at least 1")
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
    """The rows of a fit as a matrix, the encoder that made it, and the forest grown on them."""

    def __init__(
        self, features: Sequence[Features], scores_NM: NDArray[np.float64], config: LearnConfig
    ) -> None:
        self._bias_M = scores_NM.mean(0)
        self._target_NM = (scores_NM - self._bias_M).astype(np.float32)
        self._linear_share = np.float32(1.0 - config.forest_share)
        encoder = fit_encoder(features)
        texts = [(row.buckets, encoder.text(row)) for row in features]
        self._text_ND = _matrix(texts, NUM_BUCKETS)
        self._text_DN = self._text_ND.T.tocsr()
        self._encoder = replace(encoder, topics_HK=find_topics(texts, config))
        seen = [
            self._encoder.about(row, text) for row, (_, text) in zip(features, texts, strict=True)
        ]
        self._forest = grow_forest(
            np.stack(seen), config.forest_share * self._target_NM, config.forest, config.seed
        )

    def solve(self, strength: float) -> Estimator:
        """Return the estimator whose ridge regression has this penalty."""
        target_NM = self._linear_share * self._target_NM
        dual_NM = self._descend(target_NM, np.float32(strength))
        text_DM = np.asarray(self._text_DN @ dual_NM, dtype=np.float16).astype(np.float32)
        return Estimator(
            encoder=self._encoder,
            text_DM=text_DM,
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
            image = self._text_ND @ (self._text_DN @ step) + strength * step
            part_M = size_M / np.maximum((step * image).sum(0), 1e-30)
            dual += part_M * step
            rest -= part_M * image
            grown_M = (rest * rest).sum(0)
            step = rest + grown_M / np.maximum(size_M, 1e-30) * step
            size_M = grown_M
        return dual


def fit_encoder(features: Sequence[Features]) -> Encoder:
    """Learn how rare buckets are and how shapes spread, and no topics."""
    counts_D = np.zeros(NUM_BUCKETS)
    for row in features:
        counts_D[row.buckets] += 1
    rarity_D = np.where(counts_D >= 2, np.log((len(features) + 1) / np.maximum(counts_D, 1)), 0.0)
    shapes_NS = np.stack([row.shape for row in features]).astype(np.float64)
    center_S, spread_S = shapes_NS.mean(0), shapes_NS.std(0)
    # A measure that never varied still tells the unfamiliar from the familiar, but not by a hair.
    spread_S = np.maximum(spread_S, 0.05)
    standard_NS = (shapes_NS - center_S) / spread_S
    whiten_SS = _whiten(standard_NS)
    distances_N = np.sqrt(((standard_NS @ whiten_SS) ** 2).sum(1))
    return Encoder(
        rarity_D=rarity_D.astype(np.float16).astype(np.float32),
        topics_HK=np.zeros((TOPIC_PLACES, 0), dtype=np.float32),
        center_S=center_S.astype(np.float32),
        spread_S=spread_S.astype(np.float32),
        whiten_SS=whiten_SS.astype(np.float32),
        # Where all prompts are alike, any other is unfamiliar.
        far=max(float(np.quantile(distances_N, 0.999)) * 1.1, 1e-6),
    )


def find_topics(texts: Sequence[tuple[Ints, Floats]], config: LearnConfig) -> Floats:
    """Return topics_HK of these buckets and their weights, no more than one for ten rows."""
    from sklearn.utils.extmath import randomized_svd  # type: ignore[import-untyped]

    num_topics = max(1, min(config.num_topics, len(texts) // _ROWS_PER_TOPIC))
    folded_NH = _matrix([fold_words(*row) for row in texts], TOPIC_PLACES)
    _, _, topics_KH = randomized_svd(folded_NH, num_topics, n_iter=3, random_state=config.seed)
    # Rounded as they are kept.
    topics_HK: Floats = topics_KH.T.astype(np.float16).astype(np.float32)
    return topics_HK


def _matrix(rows: Sequence[tuple[Ints, Floats]], width: int) -> Any:  # noqa: ANN401
    """Return a sparse matrix of (places, values) of each row; a place may stand twice."""
    from scipy import sparse  # type: ignore[import-untyped]

    ends = np.cumsum([0, *(len(places) for places, _ in rows)])
    places, values = (np.concatenate(column) for column in zip(*rows, strict=True))
    return sparse.csr_matrix((values, places, ends), shape=(len(rows), width))


def _whiten(standard_NS: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the square root of the inverse covariance, shrunk so that it always exists."""
    covariance_SS = standard_NS.T @ standard_NS / len(standard_NS)
    values_S, vectors_SS = np.linalg.eigh(covariance_SS + 0.1 * np.eye(len(covariance_SS)))
    whitened: NDArray[np.float64] = vectors_SS / np.sqrt(values_S)
    return whitened
