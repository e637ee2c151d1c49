"""The gate keeps its limits for every token, whatever the scores, groups, biases and budgets.

Shapes: T tokens, E experts, K slots, F further slots, N grid points.
"""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moestro.model.config import BudgetConfig, ModelConfig
from moestro.model.gate import ExpertChoice, Gate, choose, further_scores, limit_groups
from moestro.model.trace import Trace
from tests.builders import tiny_config

NUM_TOKENS = 24


@st.composite
def shapes(draw: st.DrawFn) -> ModelConfig:
    """Draw any gate that a configuration allows."""
    n_group = draw(st.sampled_from([1, 2, 4]))
    topk_group = draw(st.integers(1, n_group))
    group_size = draw(st.integers(2, 5))
    most = draw(st.integers(1, group_size * topk_group))
    fewest = draw(st.integers(1, most))
    return tiny_config(
        n_group=n_group,
        topk_group=topk_group,
        n_routed_experts=n_group * group_size,
        num_experts_per_tok=most,
        min_experts_per_tok=fewest,
        norm_topk_prob=draw(st.booleans()),
        routed_scaling_factor=draw(st.sampled_from([1.0, 2.5])),
    )


def scores(config: ModelConfig, seed: int, is_coarse: bool) -> tuple[Tensor, Tensor]:
    """Return scores_TE and selection_TE; coarse ones are full of ties."""
    generator = torch.Generator().manual_seed(seed)
    shape = (NUM_TOKENS, config.n_routed_experts)
    scores_TE = torch.rand(shape, generator=generator) + 0.01
    bias_E = 0.3 * torch.randn(config.n_routed_experts, generator=generator)
    if is_coarse:
        scores_TE = torch.randint(1, 3, shape, generator=generator) / 2
        bias_E = torch.zeros(config.n_routed_experts)
    return scores_TE, limit_groups(scores_TE + bias_E, config)


def decide(
    config: ModelConfig, seed: int, threshold: float | None, is_coarse: bool = False
) -> tuple[Tensor, Tensor, ExpertChoice]:
    scores_TE, selection_TE = scores(config, seed, is_coarse)
    threshold_T = None if threshold is None else torch.full((NUM_TOKENS,), threshold)
    return scores_TE, selection_TE, choose(scores_TE, selection_TE, threshold_T, config)[1]


any_shape = pytest.mark.parametrize("is_coarse", [False, True], ids=["spread", "tied"])


@any_shape
@given(config=shapes(), seed=st.integers(0, 99), threshold=st.floats(-1.5, 0.5))
def test_every_token_takes_between_the_fewest_and_the_most_experts(
    is_coarse: bool, config: ModelConfig, seed: int, threshold: float
) -> None:
    _, _, choice = decide(config, seed, threshold, is_coarse)
    counts_T = choice.is_used_TK.sum(dim=1)
    assert bool((counts_T >= config.fewest_experts).all())
    assert bool((counts_T <= config.num_experts_per_tok).all())
    for row in choice.experts_TK.tolist():
        assert len(set(row)) == config.num_experts_per_tok


@any_shape
@given(config=shapes(), seed=st.integers(0, 99), threshold=st.floats(-1.5, 0.5))
def test_the_experts_in_use_are_those_with_the_best_selection_scores(
    is_coarse: bool, config: ModelConfig, seed: int, threshold: float
) -> None:
    _, selection_TE, choice = decide(config, seed, threshold, is_coarse)
    for token in range(NUM_TOKENS):
        used = choice.experts_TK[token][choice.is_used_TK[token]]
        is_left = torch.ones(config.n_routed_experts, dtype=torch.bool)
        is_left[used] = False
        left = selection_TE[token][is_left]
        if len(left):
            assert selection_TE[token][used].min() >= left.max()


@any_shape
@given(config=shapes(), seed=st.integers(0, 99), threshold=st.floats(-1.5, 0.5))
def test_weights_follow_the_scores_and_unused_ones_are_exactly_zero(
    is_coarse: bool, config: ModelConfig, seed: int, threshold: float
) -> None:
    scores_TE, _, choice = decide(config, seed, threshold, is_coarse)
    weights_TK, is_used_TK = choice.weights_TK, choice.is_used_TK
    assert not weights_TK[~is_used_TK].any()
    chosen_TK = scores_TE.gather(1, choice.experts_TK) * is_used_TK
    factor = config.routed_scaling_factor
    if config.norm_topk_prob:
        torch.testing.assert_close(weights_TK.sum(dim=1), torch.full((NUM_TOKENS,), factor))
        chosen_TK = chosen_TK / chosen_TK.sum(dim=1, keepdim=True)
    torch.testing.assert_close(weights_TK, chosen_TK * factor)


@any_shape
@given(config=shapes(), seed=st.integers(0, 99), thresholds=st.lists(st.floats(-2, 1), min_size=2))
def test_a_lower_threshold_takes_no_expert_away_from_any_token(
    is_coarse: bool, config: ModelConfig, seed: int, thresholds: list[float]
) -> None:
    before_TK = torch.zeros(NUM_TOKENS, config.num_experts_per_tok, dtype=torch.bool)
    for threshold in sorted(thresholds, reverse=True):
        used_TK = decide(config, seed, threshold, is_coarse)[2].is_used_TK
        assert bool((used_TK | ~before_TK).all())
        before_TK = used_TK


@any_shape
@given(config=shapes(), seed=st.integers(0, 99))
def test_no_more_groups_are_visited_than_allowed(
    is_coarse: bool, config: ModelConfig, seed: int
) -> None:
    choice = decide(config, seed, None, is_coarse)[2]
    size = config.n_routed_experts // config.n_group
    for row in choice.experts_TK.tolist():
        assert len({expert // size for expert in row}) <= config.topk_group


def test_without_a_threshold_every_slot_is_in_use() -> None:
    assert bool(decide(tiny_config(), 0, None)[2].is_used_TK.all())


@pytest.mark.parametrize(
    ("method", "kept"), [("noaux_tc", [2, 3]), ("group_limited_greedy", [0, 1])]
)
def test_version_3_ranks_groups_by_their_best_two_and_version_2_by_their_best(
    method: str, kept: list[int]
) -> None:
    kind = "deepseek_v3" if method == "noaux_tc" else "deepseek_v2"
    config = tiny_config(
        model_type=kind,
        topk_method=method,
        n_group=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
    )
    selection_TE = torch.tensor([[0.9, 0.1, 0.6, 0.5]])
    limited_TE = limit_groups(selection_TE, config)
    assert limited_TE.isfinite()[0].nonzero()[:, 0].tolist() == kept


def test_greedy_choice_has_no_groups() -> None:
    groups = {"n_group": 4, "num_experts_per_tok": 2}
    config = tiny_config(model_type="deepseek_v2", topk_method="greedy", **groups)
    selection_TE = torch.rand(3, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(limit_groups(selection_TE, config), selection_TE)


def test_the_bias_steers_the_choice_but_not_the_weights() -> None:
    gate = build_gate(tiny_config(norm_topk_prob=False, num_experts_per_tok=2))
    x_TD = tokens(gate)
    assert gate.e_score_correction_bias is not None
    gate.e_score_correction_bias.zero_()
    gate.e_score_correction_bias[5] = 10.0
    trace = Trace()
    choice = gate(x_TD, None, trace)
    assert bool((choice.experts_TK[:, 0] == 5).all())
    scores_TE = (x_TD @ gate.weight.T).sigmoid()
    torch.testing.assert_close(choice.weights_TK[:, 0], scores_TE[:, 5])
    record = trace.gates[0]
    torch.testing.assert_close(record.scores_TE, scores_TE)
    assert float(record.counts_E[5]) == NUM_TOKENS
    assert float(record.counts_E.sum()) == NUM_TOKENS * 2


def test_version_2_scores_are_a_softmax_over_all_experts() -> None:
    gate = build_gate(tiny_config(model_type="deepseek_v2", topk_method="greedy"))
    assert gate.e_score_correction_bias is None
    trace = Trace()
    gate(tokens(gate), None, trace)
    torch.testing.assert_close(trace.gates[0].scores_TE.sum(dim=1), torch.ones(NUM_TOKENS))


def test_scores_are_float32_whatever_the_arithmetic() -> None:
    gate = build_gate(tiny_config())
    trace = Trace()
    choice = gate(tokens(gate).bfloat16(), None, trace)
    assert trace.gates[0].logits_TE.dtype == choice.weights_TK.dtype == torch.float32


def test_gradients_reach_the_gate_through_the_weights_of_slots_in_use() -> None:
    gate = build_gate(with_table(tiny_config()))
    choice = gate(tokens(gate), torch.full((NUM_TOKENS,), 0.4), None)
    (choice.weights_TK * torch.arange(4.0)).sum().backward()
    assert gate.weight.grad is not None
    idle = sorted(set(range(8)) - set(choice.experts_TK[choice.is_used_TK].tolist()))
    assert not gate.weight.grad[idle].any()
    assert gate.weight.grad.any()


@given(fractions=st.lists(st.floats(0, 1), min_size=2, max_size=6), seed=st.integers(0, 20))
def test_a_larger_budget_takes_no_expert_away_from_any_token(
    fractions: list[float], seed: int
) -> None:
    gate = build_gate(with_table(tiny_config()), seed)
    x_TD, before_TK = tokens(gate, seed), None
    for fraction in sorted(fractions):
        used_TK = gate(x_TD, torch.full((NUM_TOKENS,), fraction), None).is_used_TK
        assert before_TK is None or bool((used_TK | ~before_TK).all())
        before_TK = used_TK


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 2), (1.0, 4)])
def test_at_its_ends_a_budget_is_met_by_every_token(fraction: float, expected: int) -> None:
    # Thresholds that would let in every token or none: at the ends the table is not asked.
    for row in ((-9.0, -9.0), (0.0, 0.0)):
        table = BudgetConfig(fractions=(0.0, 1.0), thresholds=(row,))
        gate = build_gate(tiny_config(budget=table))
        choice = gate(tokens(gate), torch.full((NUM_TOKENS,), fraction), None)
        assert choice.is_used_TK.sum(dim=1).unique().tolist() == [expected]


def test_without_a_table_every_budget_means_all_experts() -> None:
    gate = build_gate(tiny_config())
    for fraction in (0.0, 0.5, 1.0):
        assert bool(gate(tokens(gate), torch.full((NUM_TOKENS,), fraction), None).is_used_TK.all())


@given(seed=st.integers(0, 50), fraction=st.floats(0, 1))
def test_a_choice_does_not_depend_on_the_other_tokens_of_the_batch(
    seed: int, fraction: float
) -> None:
    gate = build_gate(with_table(tiny_config()), seed)
    x_TD, others_TD = tokens(gate, seed), tokens(gate, seed + 1)
    others_TD[:3] = x_TD[:3]
    budget_T = torch.full((NUM_TOKENS,), fraction)
    other_budgets_T = torch.rand(NUM_TOKENS, generator=torch.Generator().manual_seed(seed))
    other_budgets_T[:3] = fraction
    with torch.no_grad():
        mine, theirs = gate(x_TD, budget_T, None), gate(others_TD, other_budgets_T, None)
    for ours, other in zip(mine, theirs, strict=True):
        assert torch.equal(ours[:3], other[:3])


@given(
    falls=st.lists(st.floats(0, 0.3), min_size=2, max_size=8),
    fractions=st.lists(st.floats(0, 1), min_size=2, max_size=9),
)
def test_the_threshold_never_rises_with_the_budget(
    falls: list[float], fractions: list[float]
) -> None:
    row = (-torch.tensor(falls).cumsum(dim=0)).tolist()
    grid = torch.linspace(0, 1, len(row)).tolist()
    table = BudgetConfig(fractions=tuple(grid), thresholds=(tuple(row),))
    gate = build_gate(tiny_config(budget=table))
    threshold_T = gate.threshold(torch.tensor(sorted(fractions), dtype=torch.float32))
    assert bool((threshold_T[1:] <= threshold_T[:-1] + 1e-6).all())


def test_between_grid_points_the_threshold_is_linear() -> None:
    table = BudgetConfig(fractions=(0.0, 0.5, 1.0), thresholds=((-0.1, -0.5, -0.8),))
    gate = build_gate(tiny_config(budget=table))
    threshold_T = gate.threshold(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    expected = [torch.inf, -0.3, -0.5, -0.65, -torch.inf]
    torch.testing.assert_close(threshold_T, torch.tensor(expected))


def test_each_layer_has_its_own_row_of_the_table() -> None:
    table = BudgetConfig(fractions=(0.0, 1.0), thresholds=((-0.2, -0.4), (-0.6, -0.8)))
    config = tiny_config(first_k_dense_replace=0, budget=table)
    thresholds = [Gate(config, layer).threshold(torch.tensor([0.5])) for layer in range(2)]
    torch.testing.assert_close(torch.cat(thresholds), torch.tensor([-0.3, -0.7]))


def test_calibration_sees_the_scores_that_the_choice_is_made_by() -> None:
    config = with_table(tiny_config(n_group=2))
    gate = build_gate(config)
    fraction_T = torch.full((NUM_TOKENS,), 0.4)
    with torch.no_grad():
        is_used_TK = gate(tokens(gate), fraction_T, None).is_used_TK
        further_TF = gate.further(tokens(gate))
        is_passed_TF = further_TF > gate.threshold(fraction_T)[:, None]
    assert torch.equal(is_used_TK[:, config.fewest_experts :], is_passed_TF)
    assert is_passed_TF.any()
    assert not is_passed_TF.all()


@any_shape
@given(config=shapes(), seed=st.integers(0, 99), threshold=st.floats(-1, 0), level=st.floats(-2, 2))
def test_raising_all_scores_of_a_token_alike_leaves_its_number_of_experts(
    is_coarse: bool, config: ModelConfig, seed: int, threshold: float, level: float
) -> None:
    # In steps of 1/64, so that no sum is rounded and ties stay ties.
    level, threshold = round(level * 64) / 64, (round(threshold * 64) + 0.5) / 64
    scores_TE, selection_TE = scores(config, seed, is_coarse)
    selection_TE = (selection_TE * 64).round() / 64
    threshold_T = torch.full((NUM_TOKENS,), threshold)
    low, high = (
        choose(scores_TE, selection, threshold_T, config)[1]
        for selection in (selection_TE, selection_TE + level)
    )
    assert torch.equal(low.is_used_TK, high.is_used_TK)


def test_a_further_expert_is_measured_by_its_distance_to_the_last_certain_one() -> None:
    config = tiny_config()
    selection_TE = torch.tensor(
        [[0.9, 0.6, 0.55, 0.3, 0, 0, 0, 0], [0.9, 0.3, 0.25, 0.2, 0, 0, 0, 0]]
    )
    threshold_T = torch.full((2,), -0.2)
    choice = choose(selection_TE, selection_TE, threshold_T, config)[1]
    assert choice.is_used_TK.sum(dim=1).tolist() == [3, 4]
    ranked_TK = selection_TE[:, :4]
    expected = torch.tensor([[-0.05, -0.3], [-0.05, -0.1]])
    torch.testing.assert_close(further_scores(ranked_TK, 2), expected)


def with_table(config: ModelConfig) -> ModelConfig:
    row = (-0.05, -0.1, -0.15, -0.2, -0.3)
    return config.with_budget(BudgetConfig(fractions=(0, 0.25, 0.5, 0.75, 1), thresholds=(row,)))


def build_gate(config: ModelConfig, seed: int = 0) -> Gate:
    gate = Gate(config, moe_layer=0)
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Any] = gate.state_dict()
    with torch.no_grad():
        for value in state.values():
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return gate


def tokens(gate: Gate, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1000)
    return torch.randn(NUM_TOKENS, gate.weight.shape[1], generator=generator)
