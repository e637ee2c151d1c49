"""The cache takes what its batch can use, as far as its device's memory goes."""

import pytest
import torch

from moestro.engine import sizes
from moestro.engine.config import CacheConfig, EngineConfig
from moestro.engine.sizes import cache_blocks
from tests.builders import tiny_config

# 2 layers of 8 + 4 numbers in float32.
TOKEN_BYTES = 96
SHAPE = tiny_config(max_position_embeddings=100)


def blocks(free_bytes: int, monkeypatch: pytest.MonkeyPatch, num_tokens: int | None = None) -> int:
    gpu = torch.device("cuda:0")
    monkeypatch.setattr(sizes, "free_bytes", {gpu: free_bytes}.__getitem__)
    cache = CacheConfig(block_size=16, num_tokens=num_tokens)
    return cache_blocks(EngineConfig(max_batch=4, cache=cache), SHAPE, torch.float32, gpu)


def test_a_batch_of_full_length_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    # 100 tokens take 7 blocks.
    assert blocks(10**9, monkeypatch) == 4 * 7


def test_a_quarter_of_the_devices_free_memory_is_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    assert blocks(4 * 20 * 16 * TOKEN_BYTES, monkeypatch) == 20


def test_one_request_of_full_length_fits_whatever_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    assert blocks(0, monkeypatch) == 7


def test_what_is_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert blocks(0, monkeypatch, num_tokens=320) == 20
