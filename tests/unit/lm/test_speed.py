"""What a token of an answer must read is counted once."""

import pytest

from moestro.lm.speed import bytes_per_token
from moestro.model.count import cache_numbers_per_token
from moestro.model.model import Transformer
from tests.builders import tiny_config


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_token_reads_every_weight_that_it_uses_once_where_torch_multiplies(is_tied: bool) -> None:
    config = tiny_config(tie_word_embeddings=is_tied)
    model = Transformer(config)
    sizes = {name: value.numel() for name, value in model.state_dict().items()}
    # Of the embedding a row, if it is no head as well; of the routed experts those that are taken.
    idle = 0 if is_tied else sizes["embed_tokens.weight"] - config.hidden_size
    routed = sum(size for name, size in sizes.items() if ".experts." in name)
    idle += routed * (1 - config.num_experts_per_tok / config.n_routed_experts)
    latents = 10 * cache_numbers_per_token(config) * model.cache_dtype.itemsize
    numbers = sum(sizes.values()) - idle
    assert bytes_per_token(model, 10) == numbers * model.compute_dtype.itemsize + latents
