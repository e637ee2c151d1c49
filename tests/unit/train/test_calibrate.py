"""A table from sample text meets any budget, whatever was there before: none, or an old one.

Shapes: B sequences, S tokens.
"""

import pytest
import torch
from torch import Tensor

from moestro.errors import ConfigError, DataError
from moestro.model.config import ModelConfig
from moestro.model.model import Transformer
from moestro.model.trace import Trace
from moestro.train.budget import FRACTIONS
from moestro.train.calibrate import calibrate, recalibrate
from tests.builders import linear_budget, random_model, random_tokens, tiny_config

BUDGETS = [2.0, 2.1, 2.25, 2.5, 2.75, 3.0, 3.25, 3.5, 3.75, 3.9, 4.0]


@pytest.fixture(scope="module")
def calibrated() -> Transformer:
    """Three sparse layers, so that what a layer leaves out changes what the next ones see."""
    model = random_model(unbudgeted())
    calibrate(model, random_tokens(model.config, 64, 64, seed=1), fewest=2)
    return model


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_mean_is_within_a_percent_of_the_request_on_fresh_windows(
    calibrated: Transformer, budget: float
) -> None:
    # The sample's own noise aside, which 64 x 64 tokens of another seed keep small.
    assert mean_experts(calibrated, budget) == pytest.approx(budget, rel=0.01)


def test_mtp_modules_get_their_rows_too() -> None:
    model = random_model(unbudgeted(num_nextn_predict_layers=1))
    config = calibrate(model, random_tokens(model.config, 32, 40, seed=1), fewest=2)
    assert len(config.budget.thresholds) == config.num_moe_layers == 4
    tokens_BS = random_tokens(config, 32, 41, seed=2)
    trace = Trace()
    with torch.no_grad():
        hidden_BSD = model(tokens_BS[:, :-1], budget=3.0)
        model.look_ahead(hidden_BSD, tokens_BS[:, 1:], 0, budget=3.0, trace=trace)
    mean = float(trace.gates[0].is_used_TK.sum(dim=1).float().mean())
    assert mean == pytest.approx(3.0, rel=0.03)


def test_calibration_returns_what_the_gates_hold_and_changes_no_weight() -> None:
    model = random_model(unbudgeted())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = calibrate(model, random_tokens(model.config, 20, 60, seed=1), fewest=1)
    assert model.config == config
    assert (config.min_experts_per_tok, config.has_budget) == (1, True)
    for gate, row in zip(model.gates(), config.budget.thresholds, strict=True):
        assert gate.thresholds_N.tolist() == list(row)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert ModelConfig.from_hf(config.to_hf()) == config


def test_all_experts_give_the_logits_from_before_the_calibration() -> None:
    model = random_model(unbudgeted())
    tokens_BS = random_tokens(model.config, 2, 30)
    before = model(tokens_BS)
    calibrate(model, random_tokens(model.config, 20, 60, seed=1), fewest=2)
    assert torch.equal(model(tokens_BS), before)
    assert torch.equal(model(tokens_BS, budget=4.0), before)


def test_calibrating_again_gives_the_same_table() -> None:
    model = random_model(unbudgeted())
    sample_BS = random_tokens(model.config, 20, 60, seed=1)
    first = calibrate(model, sample_BS, fewest=2)
    assert calibrate(model, sample_BS, fewest=2) == first


@pytest.mark.parametrize("budget", [2.25, 3.0, 3.75])
def test_a_table_that_lags_behind_its_weights_is_set_right_in_one_pass(budget: float) -> None:
    model = budgeted()
    before = mean_experts(model, budget)
    recalibrate(model, mixed_sample(model.config))
    assert abs(before / budget - 1) > 0.02
    assert mean_experts(model, budget) == pytest.approx(budget, rel=0.01)


def test_recalibration_in_parts_is_that_of_the_whole() -> None:
    tables = []
    for size in (4, 32):
        model = budgeted()
        parts = [
            (tokens, budget)
            for tokens_BS, budget_B in mixed_sample(model.config)
            for tokens, budget in zip(tokens_BS.split(size), budget_B.split(size), strict=True)
        ]
        recalibrate(model, parts)
        tables.append(torch.stack([gate.thresholds_N for gate in model.gates()]))
    torch.testing.assert_close(tables[0], tables[1], atol=1e-6, rtol=0)


def test_recalibration_gives_mtp_modules_their_rows() -> None:
    model = budgeted(num_nextn_predict_layers=1)
    before = [gate.thresholds_N for gate in model.gates()]
    recalibrate(model, mixed_sample(model.config))
    assert len(before) == 4
    for gate, old_N in zip(model.gates(), before, strict=True):
        assert len(gate.thresholds_N) == len(gate.fractions_N) == len(FRACTIONS) != len(old_N)


@pytest.mark.parametrize("fewest", [0, 4, 5])
def test_a_fewest_outside_the_limits_is_refused(fewest: int) -> None:
    model = random_model(unbudgeted())
    with pytest.raises(ConfigError, match=f"min_experts_per_tok is {fewest}: .* between 1 and 3"):
        calibrate(model, random_tokens(model.config, 20, 60), fewest)


def test_too_small_a_sample_is_refused() -> None:
    model = random_model(unbudgeted())
    with pytest.raises(DataError, match="999 tokens: calibration needs 1,000"):
        calibrate(model, random_tokens(model.config, 27, 37), 2)


def budgeted(num_nextn_predict_layers: int = 0) -> Transformer:
    """Build a model whose table is not of its own scores."""
    config = tiny_config(num_hidden_layers=4, num_nextn_predict_layers=num_nextn_predict_layers)
    return random_model(config.with_budget(linear_budget(config)))


def mixed_sample(config: ModelConfig) -> list[tuple[Tensor, Tensor]]:
    budget_B = torch.linspace(2, 4, 32)
    return [(random_tokens(config, 32, 64, seed=seed), budget_B) for seed in (1, 3)]


def unbudgeted(num_nextn_predict_layers: int = 0) -> ModelConfig:
    return tiny_config(
        min_experts_per_tok=None,
        num_hidden_layers=4,
        num_nextn_predict_layers=num_nextn_predict_layers,
    )


def mean_experts(model: Transformer, budget: float) -> float:
    trace = Trace()
    with torch.no_grad():
        model(random_tokens(model.config, 64, 64, seed=2), budget=budget, trace=trace)
    means = [float(gate.is_used_TK.sum(dim=1).float().mean()) for gate in trace.gates]
    return sum(means) / len(means)
