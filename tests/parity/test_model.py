"""Twins of the whole model: bfloat16 and float32, saved and loaded, alone and in a batch."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moestro.model.model import Transformer
from moestro.model.trace import Trace
from moestro.train.loss import language_loss
from moestro.weights.export import save_model
from moestro.weights.load import load_model
from tests.builders import linear_budget, random_model, random_tokens, tiny_config


def test_bfloat16_arithmetic_gives_nearly_the_logits_of_float32() -> None:
    model = random_model(tiny_config(q_lora_rank=7))
    tokens_BS = random_tokens(model.config, 4, 24)
    exact = run(model, tokens_BS)
    model.compute_dtype = torch.bfloat16
    for path in ("naive", "absorbed"):
        with torch.no_grad():
            hidden_BSD = model(tokens_BS, path=path)
            logits = model.logits(hidden_BSD)
        assert hidden_BSD.dtype == torch.bfloat16
        assert logits.dtype == torch.float32
        # A token whose last two candidates nearly tie may take another expert: so not the maximum.
        difference = (logits - exact).abs().flatten()
        assert difference.median() < 0.02 * exact.std()
        assert difference.quantile(0.95) < 0.1 * exact.std()


def test_bfloat16_arithmetic_gives_nearly_the_gradients_of_float32() -> None:
    model = random_model(tiny_config(num_nextn_predict_layers=1))
    other = copy.deepcopy(model)
    other.compute_dtype = torch.bfloat16
    window_BW = random_tokens(model.config, 8, 26)
    for twin in (model, other):
        language_loss(twin, window_BW, None, Trace(), 0.3).total.backward()
    for (name, exact), close in zip(model.named_parameters(), other.parameters(), strict=True):
        assert exact.grad is not None, name
        assert close.grad is not None, name
        assert close.grad.dtype == torch.float32
        gap = (close.grad - exact.grad).norm() / exact.grad.norm()
        assert gap < 0.15, f"{name}: {gap}"


@pytest.mark.parametrize("budget", [None, 2.5])
def test_saved_equals_loaded_to_the_bit(tmp_path: Path, budget: float | None) -> None:
    config = tiny_config(num_nextn_predict_layers=1)
    model = random_model(config.with_budget(linear_budget(config)))
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config.budget == model.config.budget
    tokens_BS = random_tokens(config, 2, 20)
    with torch.no_grad():
        expected, hidden = model(tokens_BS, budget=budget), loaded(tokens_BS, budget=budget)
        assert torch.equal(hidden, expected)
        ahead = [m.look_ahead(expected, tokens_BS, 0, budget=budget) for m in (model, loaded)]
    assert torch.equal(ahead[0], ahead[1])


def test_a_sequence_gets_the_same_logits_alone_and_in_a_batch() -> None:
    config = tiny_config()
    model = random_model(config.with_budget(linear_budget(config)))
    tokens_BS = random_tokens(config, 5, 20)
    budget_B = torch.tensor([2.0, 2.4, 3.0, 3.7, 4.0])
    with torch.no_grad():
        together = model.logits(model(tokens_BS, budget=budget_B))
        for row in range(5):
            alone = model.logits(model(tokens_BS[row : row + 1], budget=float(budget_B[row])))
            torch.testing.assert_close(together[row], alone[0], atol=2e-5, rtol=1e-4)


def run(model: Transformer, tokens_BS: Tensor) -> Tensor:
    with torch.no_grad():
        return model.logits(model(tokens_BS))
