"""A forest: the mean of many trees that split prompts at random (extremely randomized trees).

Geurts, Ernst and Wehenkel 2006. A prompt is whatever numbers it is given as: estimate.py says
which. Every tree learns all models' scores at once, so a split that tells hard prompts from easy
ones for every model is found with all models' rows. Numpy only to use, all trees walked side by
side; only growing one imports scikit-learn. Next: learn.py.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moestro.errors import ConfigError

Floats = NDArray[np.float32]
# Numpy takes by this type only without a copy.
Places = NDArray[np.intp]

# What a leaf's feature is compared with: nothing is larger.
LEAF = np.finfo(np.float32).max


@dataclass(frozen=True, kw_only=True)
class ForestConfig:
    """How a forest grows."""

    num_trees: int = 150
    """Trees. Limits: 1 or more."""
    max_depth: int = 10
    """Splits from root to leaf at most. Limits: 1 or more."""
    leaf_rows: int = 15
    """Rows of a leaf at least. Limits: 1 or more."""
    feature_share: float = 0.7
    """Share of the features that are tried for every split. Limits: above 0, at most 1."""

    def __post_init__(self) -> None:
        if min(self.num_trees, self.max_depth, self.leaf_rows) < 1:
            raise ConfigError("num_trees, max_depth and leaf_rows must be at least 1")
        if not 0.0 < self.feature_share <= 1.0:
            raise ConfigError(f"feature_share is {self.feature_share:g}: give a share up to 1")


@dataclass(frozen=True, kw_only=True)
class Forest:
    """T trees of V nodes in all; a node's right child stands behind its left one.

    A leaf is its own left child, and no feature passes its threshold, LEAF; its value is one per
    model, divided by the number of trees already. No leaf is deeper than `depth`.
    """

    depth: int
    roots_T: Places
    features_V: Places
    thresholds_V: Floats
    left_V: Places
    values_VM: Floats

    def estimate(self, seen_F: Floats) -> Floats:
        """Return the sum over trees of the values of the leaves that these features fall into."""
        nodes_T = self.roots_T
        for _ in range(self.depth):
            measured_T = seen_F.take(self.features_V.take(nodes_T))
            is_right_T = measured_T > self.thresholds_V.take(nodes_T)
            nodes_T = self.left_V.take(nodes_T) + is_right_T
        total_M: Floats = self.values_VM.take(nodes_T, axis=0).sum(0)
        return total_M

    def check(self, num_features: int, num_models: int) -> None:
        """Raise ValueError for a forest that does not fit together or a policy."""
        num_nodes = len(self.features_V)
        if (
            self.values_VM.shape != (num_nodes, num_models)
            or self.thresholds_V.shape != (num_nodes,)
            or self.left_V.shape != (num_nodes,)
            or not _lies_in(self.features_V, num_features)
            or not _lies_in(self.roots_T, num_nodes)
            or not _lies_in(self.left_V, num_nodes)
            or not _lies_in(self.left_V + (self.thresholds_V < LEAF), num_nodes)
            or not 0 <= self.depth <= num_nodes
        ):
            raise ValueError("the forest's nodes do not fit together")


def grow_forest(seen_NF: Floats, targets_NM: Floats, config: ForestConfig, seed: int) -> Forest:
    """Grow a forest that estimates the targets of rows from their features."""
    from sklearn.ensemble import ExtraTreesRegressor  # type: ignore[import-untyped]

    grown = ExtraTreesRegressor(
        config.num_trees,
        max_depth=config.max_depth,
        min_samples_leaf=config.leaf_rows,
        max_features=config.feature_share,
        random_state=seed,
    ).fit(seen_NF, targets_NM)
    trees: list[Any] = [estimator.tree_ for estimator in grown.estimators_]
    roots_T = np.cumsum([0, *(tree.node_count for tree in trees)])[:-1]
    orders = [_side_by_side(tree.children_left, tree.children_right) for tree in trees]
    features, thresholds, left, values = [], [], [], []
    for tree, root, (order_N, left_N) in zip(trees, roots_T, orders, strict=True):
        is_leaf_N = tree.children_left[order_N] < 0
        features.append(np.where(is_leaf_N, 0, tree.feature[order_N]))
        thresholds.append(np.where(is_leaf_N, LEAF, tree.threshold[order_N]))
        left.append(root + left_N)
        values.append(np.where(is_leaf_N[:, None], tree.value[order_N, :, 0], 0.0) / len(trees))
    return Forest(
        depth=max(tree.max_depth for tree in trees),
        roots_T=roots_T.astype(np.intp),
        features_V=np.concatenate(features).astype(np.intp),
        thresholds_V=np.concatenate(thresholds).astype(np.float32),
        left_V=np.concatenate(left).astype(np.intp),
        # Rounded as they are kept.
        values_VM=np.concatenate(values).astype(np.float16).astype(np.float32),
    )


def _side_by_side(left_N: Places, right_N: Places) -> tuple[Places, Places]:
    """Return a tree's nodes in an order that keeps siblings together, and each one's left child.

    The children are places in that order; a leaf's is its own.
    """
    order, left = [0], np.arange(len(left_N))
    for place in range(len(left_N)):
        node = order[place]
        if left_N[node] >= 0:
            left[place] = len(order)
            order += [int(left_N[node]), int(right_N[node])]
    return np.array(order), left


def _lies_in(places: Places, size: int) -> bool:
    return bool(len(places)) and int(places.min()) >= 0 and int(places.max()) < size
