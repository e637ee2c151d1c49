"""Which way of attending is chosen, and that the cheaper one has fewer multiplications."""

import torch

from moestro.ops.latent import is_absorbed

# Version 3's heads: 128 + 128 numbers for key and value, latents of 512.
UP_HEC = torch.empty(4, 256, 512, device="meta")


def test_one_query_against_many_keys_stays_in_the_latent_space() -> None:
    assert is_absorbed("auto", 1, 1000, UP_HEC, 64)


def test_as_many_queries_as_keys_expand_the_keys() -> None:
    assert not is_absorbed("auto", 1000, 1000, UP_HEC, 64)
    assert not is_absorbed("auto", 1, 1, UP_HEC, 64)


def test_the_choice_turns_once_as_queries_grow() -> None:
    choices = [is_absorbed("auto", queries, 1000, UP_HEC, 64) for queries in range(1, 1001)]
    assert choices == sorted(choices, reverse=True)
