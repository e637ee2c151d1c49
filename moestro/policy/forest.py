"""A forest: the mean of many trees that split shapes at random places (extremely randomized trees).

Geurts, Ernst and Wehenkel 2006. Every tree learns all models' scores at once, so a split that tells
hard prompts from easy ones for every model is found with all models' rows. Numpy only to use, all
trees walked side by side; only growing one imports scikit-learn. Next: learn.py.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moestro.errors import ConfigError

Floats = NDArray[np.float32]
# Numpy takes by this type only without a copy.
Places = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class ForestConfig:
    """How many trees grow, how deep, with how many rows a leaf at least.

    `feature_share` of the measures are tried for every split.
    """

    num_trees: int = 100
    max_depth: int = 10
    leaf_rows: int = 15
    feature_share: float = 0.4

    def __post_init__(self) -> None:
        if min(self.num_trees, self.max_depth, self.leaf_rows) < 1:
            raise ConfigError("num_trees, max_depth and leaf_rows must be at least 1")
        if not 0.0 < self.feature_share <= 1.0:
            raise ConfigError(f"feature_share is {self.feature_share:g}: give a share up to 1")


@dataclass(frozen=True, kw_only=True)
class Forest:
    """T trees of V nodes in all; a leaf is its own child, and its value is one per model.

    Values are divided by the number of trees already; no leaf is deeper than `depth`.
    """

    depth: int
    roots_T: Places
    features_V: Places
    thresholds_V: Floats
    children_V2: Places
    values_VM: Floats

    def estimate(self, shape: Floats) -> Floats:
        """Return the sum over trees of the values of the leaves that a shape falls into."""
        nodes_T = self.roots_T
        children = self.children_V2.ravel()
        for _ in range(self.depth):
            measured_T = shape.take(self.features_V.take(nodes_T))
            is_right_T = measured_T > self.thresholds_V.take(nodes_T)
            nodes_T = children.take(nodes_T + nodes_T + is_right_T)
        total_M: Floats = self.values_VM.take(nodes_T, axis=0).sum(0)
        return total_M

    def check(self, num_features: int, num_models: int) -> None:
        """Raise ValueError for a forest that does not fit together or a policy."""
        num_nodes = len(self.features_V)
        if (
            self.values_VM.shape != (num_nodes, num_models)
            or self.thresholds_V.shape != (num_nodes,)
            or self.children_V2.shape != (num_nodes, 2)
            or not _lies_in(self.features_V, num_features)
            or not _lies_in(self.roots_T, num_nodes)
            or not _lies_in(self.children_V2, num_nodes)
            or not 0 <= self.depth <= num_nodes
        ):
            raise ValueError("the forest's nodes do not fit together")


def grow_forest(shapes_NS: Floats, targets_NM: Floats, config: ForestConfig, seed: int) -> Forest:
    """Grow a forest that estimates the targets of rows from their shapes."""
    from sklearn.ensemble import ExtraTreesRegressor  # type: ignore[import-untyped]

    grown = ExtraTreesRegressor(
        config.num_trees,
        max_depth=config.max_depth,
        min_samples_leaf=config.leaf_rows,
        max_features=config.feature_share,
        random_state=seed,
    ).fit(shapes_NS, targets_NM)
    trees: list[Any] = [estimator.tree_ for estimator in grown.estimators_]
    roots_T = np.cumsum([0, *(tree.node_count for tree in trees)])[:-1]
    children = []
    for root, tree in zip(roots_T, trees, strict=True):
        own_N1 = np.arange(tree.node_count)[:, None]
        both_N2 = np.column_stack([tree.children_left, tree.children_right])
        children.append(root + np.where(both_N2 < 0, own_N1, both_N2))
    values_VM = np.concatenate([tree.value[:, :, 0] for tree in trees]) / len(trees)
    is_leaf_V = np.concatenate([tree.children_left for tree in trees]) < 0
    return Forest(
        depth=max(tree.max_depth for tree in trees),
        roots_T=roots_T.astype(np.intp),
        features_V=np.concatenate([np.maximum(t.feature, 0) for t in trees]).astype(np.intp),
        thresholds_V=np.concatenate([tree.threshold for tree in trees]).astype(np.float32),
        children_V2=np.concatenate(children).astype(np.intp),
        # Rounded as they are kept.
        values_VM=(values_VM * is_leaf_V[:, None]).astype(np.float16).astype(np.float32),
    )


def _lies_in(places: Places, size: int) -> bool:
    return bool(len(places)) and int(places.min()) >= 0 and int(places.max()) < size
