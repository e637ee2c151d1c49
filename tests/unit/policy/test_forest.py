"""A forest, walked by us, says what scikit-learn's says; a damaged one is refused."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesRegressor  # type: ignore[import-untyped]

from moestro.errors import ConfigError
from moestro.policy.forest import Forest, ForestConfig, grow_forest

CONFIG = ForestConfig(num_trees=7, max_depth=5, leaf_rows=3)


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    shapes_NS = draw.standard_normal((200, 4)).astype(np.float32)
    hard_N = (shapes_NS[:, 0] > 0.3).astype(np.float32)
    return shapes_NS, np.column_stack([-hard_N, 0.5 * hard_N])


@pytest.fixture(scope="module")
def forest(rows: tuple[np.ndarray, np.ndarray]) -> Forest:
    return grow_forest(*rows, CONFIG, seed=1)


def test_parity_walked_side_by_side_or_by_scikit_learn(
    rows: tuple[np.ndarray, np.ndarray], forest: Forest
) -> None:
    theirs = ExtraTreesRegressor(
        7, max_depth=5, min_samples_leaf=3, max_features=CONFIG.feature_share, random_state=1
    ).fit(*rows)
    ours = np.array([forest.estimate(shape) for shape in rows[0]])
    np.testing.assert_allclose(ours, theirs.predict(rows[0]), atol=2e-3)


def test_it_learns_what_shapes_tell(rows: tuple[np.ndarray, np.ndarray], forest: Forest) -> None:
    easy, hard = (forest.estimate(np.float32([place, 0, 0, 0])) for place in (-1.0, 1.5))
    assert hard[1] - hard[0] > easy[1] - easy[0] + 0.5


def test_too_few_rows_to_split_give_a_forest_of_leaves(
    rows: tuple[np.ndarray, np.ndarray],
) -> None:
    shapes_NS, targets_NM = rows[0][:5], rows[1][:5]
    forest = grow_forest(shapes_NS, targets_NM, CONFIG, seed=0)
    np.testing.assert_allclose(forest.estimate(shapes_NS[0]), targets_NM.mean(0), atol=2e-3)


def test_a_forest_that_does_not_fit_together_is_refused(forest: Forest) -> None:
    forest.check(4, 2)
    with pytest.raises(ValueError, match="do not fit"):
        forest.check(3, 2)
    with pytest.raises(ValueError, match="do not fit"):
        forest.check(4, 3)
    beyond = np.array([len(forest.features_V)])
    with pytest.raises(ValueError, match="do not fit"):
        replace(forest, roots_T=beyond).check(4, 2)
    with pytest.raises(ValueError, match="do not fit"):
        replace(forest, depth=-1).check(4, 2)
    with pytest.raises(ValueError, match="do not fit"):
        replace(forest, left_V=forest.left_V + 1).check(4, 2)


@pytest.mark.parametrize(
    "values", [{"num_trees": 0}, {"leaf_rows": 0}, {"feature_share": 0.0}, {"feature_share": 2.0}]
)
def test_impossible_settings_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        ForestConfig(**values)  # type: ignore[arg-type]
