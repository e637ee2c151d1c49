"""Cached = uncached and absorbed = naive: how a sequence is fed and attended changes no number."""

from typing import Any

import pytest
import torch
from torch import Tensor

from moestro.model.cache import ContiguousCache
from moestro.model.context import AttentionPath
from moestro.model.model import Transformer
from tests.builders import linear_budget, random_model, random_tokens, tiny_config

NUM_TOKENS = 21
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "query compression": {"q_lora_rank": 7, "attention_bias": True},
    "wide values": {"v_head_dim": 16},
    "narrow values": {"v_head_dim": 2},
    "halves": {"rope_interleave": False},
    "dense": {"first_k_dense_replace": 2},
}
FEEDS = {
    "in one go": [NUM_TOKENS],
    "in chunks": [8, 1, 5, 7],
    "token by token": [1] * NUM_TOKENS,
}
PATHS: tuple[AttentionPath, ...] = ("naive", "absorbed", "auto")


@pytest.mark.parametrize("sizes", FEEDS.values(), ids=FEEDS.keys())
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_cached_equals_uncached(
    changes: dict[str, Any], path: AttentionPath, sizes: list[int]
) -> None:
    model = random_model(tiny_config(**changes))
    tokens_BS = random_tokens(model.config, 2, NUM_TOKENS)
    expected = run(model, tokens_BS)
    cache = ContiguousCache(model.config, NUM_TOKENS, batch_size=2)
    with torch.no_grad():
        parts = [model(part, cache=cache, path=path) for part in tokens_BS.split(sizes, dim=1)]
    assert cache.length == NUM_TOKENS
    assert_close(model.logits(torch.cat(parts, dim=1)), expected)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_absorbed_equals_naive(changes: dict[str, Any]) -> None:
    model = random_model(tiny_config(**changes))
    tokens_BS = random_tokens(model.config, 2, NUM_TOKENS)
    assert_close(run(model, tokens_BS, path="absorbed"), run(model, tokens_BS, path="naive"))


def test_absorbed_and_naive_have_equal_gradients() -> None:
    gradients = []
    for path in ("naive", "absorbed"):
        model = random_model(tiny_config())
        tokens_BS = random_tokens(model.config, 2, 9)
        model.logits(model(tokens_BS, path=path)).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for naive, absorbed in zip(*gradients, strict=True):
        assert_close(absorbed, naive)


@pytest.mark.parametrize("budget", [2.0, 2.6, 3.5, 4.0])
def test_cached_equals_uncached_within_a_budget(budget: float) -> None:
    config = tiny_config()
    model = random_model(config.with_budget(linear_budget(config)))
    tokens_BS = random_tokens(config, 1, NUM_TOKENS)
    cache = ContiguousCache(config, NUM_TOKENS)
    with torch.no_grad():
        expected = model.logits(model(tokens_BS, budget=budget))
        parts = [model(part, cache=cache, budget=budget) for part in tokens_BS.split(4, dim=1)]
    assert_close(model.logits(torch.cat(parts, dim=1)), expected)


def test_a_sequence_is_not_changed_by_what_follows_it() -> None:
    model = random_model(tiny_config())
    tokens_BS = random_tokens(model.config, 2, NUM_TOKENS)
    tokens_BS[1, :11] = tokens_BS[0, :11]
    for path in PATHS:
        logits = run(model, tokens_BS, path=path)
        assert_close(logits[1, :11], logits[0, :11])
        assert (logits[1, 11] - logits[0, 11]).abs().max() > 1e-2


def test_a_rewound_cache_goes_on_as_if_the_forgotten_tokens_never_were() -> None:
    model = random_model(tiny_config())
    tokens_BS = random_tokens(model.config, 1, NUM_TOKENS)
    cache = ContiguousCache(model.config, NUM_TOKENS)
    with torch.no_grad():
        model(tokens_BS[:, :10], cache=cache)
        model(random_tokens(model.config, 1, 6, seed=1), cache=cache)
        cache.rewind(10)
        rest = model(tokens_BS[:, 10:], cache=cache)
    assert_close(model.logits(rest), run(model, tokens_BS)[:, 10:])


def test_positions_matter() -> None:
    model = random_model(tiny_config())
    same_BS = torch.tensor([[3, 5, 5, 5]])
    assert (run(model, same_BS)[0, 3] - run(model, same_BS[:, :3])[0, 2]).abs().max() > 1e-4


def run(model: Transformer, tokens_BS: Tensor, path: AttentionPath = "naive") -> Tensor:
    with torch.no_grad():
        return model.logits(model(tokens_BS, path=path))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)
