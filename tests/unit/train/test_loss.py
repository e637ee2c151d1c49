"""The training loss is the mean over next tokens, and over those that MTP modules look ahead to."""

import pytest
import torch
import torch.nn.functional as F

from moestro.model.trace import Trace
from moestro.train.loss import language_loss, window_length
from tests.builders import random_model, random_tokens, tiny_config


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_loss_is_that_of_whole_logits(depth: int) -> None:
    model = random_model(tiny_config(num_nextn_predict_layers=depth))
    assert window_length(model, 12) == 13 + depth
    window_BW = random_tokens(model.config, 3, window_length(model, 12))
    losses = language_loss(model, window_BW, None, Trace(), mtp_weight=0.3)
    with torch.no_grad():
        state_BSD = model(window_BW[:, :12])
        expected = [cross_entropy(model.logits(state_BSD), window_BW[:, 1:13])]
        for k in range(depth):
            state_BSD = model.look_ahead(state_BSD, window_BW[:, k + 1 : k + 13], k)
            expected.append(cross_entropy(model.logits(state_BSD), window_BW[:, k + 2 : k + 14]))
    assert losses.nats == pytest.approx(expected, abs=1e-4)
    ahead = 0.3 * sum(expected[1:]) / depth if depth else 0.0
    assert float(losses.total.detach()) == pytest.approx(expected[0] + ahead, abs=1e-4)


def test_mtp_modules_without_weight_teach_nothing() -> None:
    model = random_model(tiny_config(num_nextn_predict_layers=1))
    window_BW = random_tokens(model.config, 3, window_length(model, 12))
    language_loss(model, window_BW, None, Trace(), mtp_weight=0.0).total.backward()
    gradient = model.mtp[0].eh_proj.weight.grad
    assert gradient is None or not gradient.any()


def test_the_trace_has_every_gate_in_the_order_of_the_model() -> None:
    model = random_model(tiny_config(num_nextn_predict_layers=2, first_k_dense_replace=0))
    window_BW = random_tokens(model.config, 2, window_length(model, 6))
    trace = Trace()
    language_loss(model, window_BW, torch.tensor([2.0, 4.0]), trace, mtp_weight=0.3)
    assert len(trace.gates) == len(model.gates()) == 4
    weights = [gate.weight for gate in model.gates()]
    last = trace.gates[-1].logits_TE.sum()
    gradients = torch.autograd.grad(last, weights, allow_unused=True)
    assert gradients[-1] is not None


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> float:
    return float(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
