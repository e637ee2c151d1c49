"""FP8 blocks: what is packed comes back within the format's resolution."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moestro.ops.pack import BLOCK, dequantize_blocks, quantize_blocks, scale_shape


@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    size=st.floats(1e-12, 1e12),
    seed=st.integers(0, 9),
)
@settings(max_examples=30, deadline=None)
def test_a_packed_matrix_comes_back_within_one_sixteenth(
    rows: int, columns: int, size: float, seed: int
) -> None:
    weight = size * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    packed, scale = quantize_blocks(weight)
    assert packed.dtype == torch.float8_e4m3fn
    assert packed.shape == weight.shape
    assert tuple(scale.shape) == scale_shape((rows, columns))
    restored = dequantize_blocks(packed, scale)
    # Three bits of mantissa round within 1/16; below 2**-6 the steps are even, 2**-10 of the scale.
    spread = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    bound = torch.maximum(weight.abs() / 16, spread * 2.0**-10)
    assert bool(((restored - weight).abs() <= bound * 1.001).all())


def test_each_block_uses_the_whole_range_of_float8() -> None:
    weight = torch.randn(200, 200, generator=torch.Generator().manual_seed(0))
    weight[128:, 128:] *= 1e-6
    packed, _ = quantize_blocks(weight)
    blocks = (packed[:128, :128], packed[:128, 128:], packed[128:, :128], packed[128:, 128:])
    assert [float(block.float().abs().max()) for block in blocks] == [448.0] * 4


def test_a_block_of_zeros_stays_zero() -> None:
    packed, scale = quantize_blocks(torch.zeros(3, 130))
    assert torch.equal(dequantize_blocks(packed, scale), torch.zeros(3, 130))


def test_a_number_below_the_normal_range_does_not_become_infinite() -> None:
    weight = torch.full((2, 2), 1e-44)
    restored = dequantize_blocks(*quantize_blocks(weight))
    assert bool(restored.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unpacking_multiplies_every_element_by_the_scale_of_its_block(dtype: torch.dtype) -> None:
    packed = torch.ones(5, 7).to(torch.float8_e4m3fn)
    scale = torch.arange(1.0, 7.0).view(2, 3)
    restored = dequantize_blocks(packed, scale, (3, 3), dtype)
    assert restored.dtype == dtype
    expected = [[scale[row // 3, column // 3] for column in range(7)] for row in range(5)]
    assert torch.equal(restored, torch.tensor(expected, dtype=dtype))


def test_the_default_block_is_that_of_the_published_checkpoints() -> None:
    assert BLOCK == (128, 128)
