"""Attention through whole score matrices equals torch's fused attention, gradients included.

Shapes: N sequences times heads, S tokens, Q query width, V value width.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moestro.ops.scores import attend_whole, is_cheaper


@pytest.mark.parametrize("num_tokens", [1, 2, 17, 64])
@pytest.mark.parametrize("width_of_values", [8, 5, 12])
def test_values_and_gradients_equal_those_of_torch(num_tokens: int, width_of_values: int) -> None:
    parts = inputs(num_tokens, width_of_values)
    out_NSV = attend_whole(*parts, 0.3)
    expected_NSV = F.scaled_dot_product_attention(*parts, is_causal=True, scale=0.3)
    torch.testing.assert_close(out_NSV, expected_NSV, atol=1e-6, rtol=1e-5)
    dout_NSV = torch.randn(out_NSV.shape, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(out_NSV, parts, dout_NSV)
    theirs = torch.autograd.grad(expected_NSV, parts, dout_NSV)
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_bfloat16_stays_close_to_float32() -> None:
    parts = inputs(64, 8)
    exact = attend_whole(*parts, 0.3)
    close = attend_whole(*(part.bfloat16() for part in parts), 0.3)
    assert close.dtype == torch.bfloat16
    torch.testing.assert_close(close.float(), exact, atol=3e-2, rtol=3e-2)


def test_it_serves_short_whole_sequences_in_bfloat16_alone() -> None:
    query = torch.zeros(2, 512, 8, dtype=torch.bfloat16)
    assert is_cheaper(query, 512)
    assert not is_cheaper(query.float(), 512)
    assert not is_cheaper(query[:, :1], 1)
    assert not is_cheaper(query[:, :8], 512)
    assert not is_cheaper(query.repeat(1, 2, 1), 1024)


def inputs(num_tokens: int, width_of_values: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    widths = (8, 8, width_of_values)
    query, key, value = (
        torch.randn(3, num_tokens, width, generator=generator).requires_grad_() for width in widths
    )
    return query, key, value
