"""The whole model: first weights, shapes and dtypes, budgets and what a trace records."""

import pytest
import torch

from moestro.errors import ConfigError
from moestro.model.cache import ContiguousCache
from moestro.model.initialize import initialize
from moestro.model.linear import RMSNorm
from moestro.model.model import Transformer
from moestro.model.trace import Trace
from tests.builders import linear_budget, random_model, random_tokens, tiny_config


def test_a_seed_gives_one_set_of_first_weights() -> None:
    models = [Transformer(tiny_config(num_nextn_predict_layers=1)) for _ in range(3)]
    for model, seed in zip(models, (5, 5, 6), strict=True):
        initialize(model, seed)
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["lm_head.weight"], states[2]["lm_head.weight"])


def test_first_weights_have_the_configured_size_and_norms_are_one() -> None:
    config = tiny_config(hidden_size=64, initializer_range=0.05, attention_bias=True)
    model = Transformer(config)
    initialize(model, 0)
    state = model.state_dict()
    assert float(state["embed_tokens.weight"].std()) == pytest.approx(0.05, rel=0.1)
    assert float(state["layers.1.mlp.experts.gate_up_proj"].std()) == pytest.approx(0.05, rel=0.1)
    # What writes into the stream is smaller by 1 / sqrt(2 layers).
    assert float(state["layers.0.self_attn.o_proj.weight"].std()) == pytest.approx(0.025, rel=0.1)
    assert float(state["layers.1.mlp.experts.down_proj"].std()) == pytest.approx(0.025, rel=0.1)
    assert not state["layers.0.self_attn.o_proj.bias"].any()
    norms = [module for module in model.modules() if isinstance(module, RMSNorm)]
    assert all(bool((norm.weight == 1).all()) for norm in norms)


def test_an_untrained_model_predicts_every_token_alike() -> None:
    model = Transformer(tiny_config())
    initialize(model, 0)
    logits = model.logits(model(random_tokens(model.config, 2, 9)))
    nats = logits.detach().logsumexp(dim=-1).mean()
    assert float(nats) == pytest.approx(torch.tensor(40.0).log().item(), abs=0.01)


def test_logits_are_float32_of_the_vocabulary() -> None:
    model = random_model(tiny_config())
    model.compute_dtype = torch.bfloat16
    hidden_BSD = model(random_tokens(model.config, 2, 9))
    assert (hidden_BSD.shape, hidden_BSD.dtype) == ((2, 9, 16), torch.bfloat16)
    logits = model.logits(hidden_BSD)
    assert (logits.shape, logits.dtype) == ((2, 9, 40), torch.float32)


def test_a_tied_head_is_the_embedding() -> None:
    model = random_model(tiny_config(tie_word_embeddings=True))
    assert torch.equal(model.head_weight(), model.embed_tokens.weight)


@pytest.mark.parametrize("budget", [1.9, 4.1, float("nan"), torch.tensor([3.0, 5.0])])
def test_a_budget_outside_the_limits_is_refused(budget: float | torch.Tensor) -> None:
    model = random_model(tiny_config())
    with pytest.raises(ConfigError, match="this model takes 2 to 4 experts per token"):
        model(random_tokens(model.config, 2, 5), budget=budget)


def test_a_dense_model_takes_any_budget_within_the_limits_without_a_gate() -> None:
    model = random_model(tiny_config(first_k_dense_replace=2))
    tokens_BS = random_tokens(model.config, 1, 5)
    assert torch.equal(model(tokens_BS, budget=3.0), model(tokens_BS))


def test_a_trace_has_one_record_for_each_gate_mtp_modules_last() -> None:
    model = random_model(tiny_config(num_nextn_predict_layers=1, first_k_dense_replace=0))
    tokens_BS = random_tokens(model.config, 2, 7)
    trace = Trace()
    hidden_BSD = model(tokens_BS, trace=trace)
    assert len(trace.gates) == 2
    model.look_ahead(hidden_BSD, tokens_BS, 0, trace=trace)
    assert len(trace.gates) == len(model.gates()) == 3
    for record in trace.gates:
        assert record.experts_TK.shape == record.is_used_TK.shape == (14, 4)
        assert float(record.counts_E.sum()) == 14 * 4


def test_more_budget_means_more_experts_and_the_ends_are_exact() -> None:
    config = tiny_config()
    model = random_model(config.with_budget(linear_budget(config)))
    means = []
    for budget in (2.0, 2.5, 3.0, 3.5, 4.0):
        trace = Trace()
        model(random_tokens(config, 4, 30), budget=budget, trace=trace)
        means.append(float(trace.gates[0].is_used_TK.sum(dim=1).float().mean()))
    assert means == sorted(means)
    assert (means[0], means[-1]) == (2.0, 4.0)
    assert 2.0 < means[2] < 4.0


def test_a_budget_is_each_sequences_own() -> None:
    config = tiny_config()
    model = random_model(config.with_budget(linear_budget(config)))
    trace = Trace()
    model(random_tokens(config, 3, 8), budget=torch.tensor([2.0, 4.0, 2.0]), trace=trace)
    counts_BS = trace.gates[0].is_used_TK.sum(dim=1).view(3, 8)
    assert counts_BS.unique(dim=1).tolist() == [[2], [4], [2]]


def test_a_full_cache_refuses_another_token() -> None:
    model = random_model(tiny_config())
    cache = ContiguousCache(model.config, capacity=3)
    model(random_tokens(model.config, 1, 3), cache=cache)
    with pytest.raises(AssertionError, match="cache of 3 tokens asked to hold 4"):
        model(random_tokens(model.config, 1, 1), cache=cache)


def test_gradients_reach_every_weight() -> None:
    model = random_model(tiny_config(num_nextn_predict_layers=1, q_lora_rank=5))
    tokens_BS = random_tokens(model.config, 8, 12)
    hidden_BSD = model(tokens_BS)
    ahead_BSD = model.look_ahead(hidden_BSD, tokens_BS, 0)
    (model.logits(hidden_BSD).square().mean() + model.logits(ahead_BSD).square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
