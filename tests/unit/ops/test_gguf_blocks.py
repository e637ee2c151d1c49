"""Every type of block holds the numbers that llama.cpp's own package reads from it."""

import gguf
import numpy as np
import pytest
import torch

from moestro.gguf_file import TYPES
from moestro.ops.gguf_blocks import (
    CODES,
    is_float,
    join_codes,
    read_blocks,
    read_floats,
    split_codes,
)
from moestro.ops.quantize import dequantize, quantize

ROWS, DEPTH = 5, 512
# Where the float16 scales of a block are.
SCALES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2),
    "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip


def random_blocks(name: str) -> np.ndarray:
    """Draw bytes whose scales are finite and ordinary."""
    kind = next(each for each in TYPES.values() if each.name == name)
    generator = np.random.default_rng(0)
    shape = (ROWS, DEPTH // kind.size, kind.num_bytes)
    blocks = generator.integers(0, 256, shape, dtype=np.uint8)
    for place in SCALES[name]:
        scales = generator.normal(size=(*shape[:2], 1)).astype(np.float16)
        blocks[..., place : place + 2] = scales.view(np.uint8)
    return blocks.reshape(ROWS, -1)


@pytest.mark.parametrize("name", SCALES)
def test_blocks_are_read_as_llama_cpp_reads_them(name: str) -> None:
    data = random_blocks(name)
    expected = gguf.dequantize(data, gguf.GGMLQuantizationType[name])
    flat = torch.from_numpy(data).flatten()
    if name in CODES:
        found = dequantize(split_codes(flat, name, DEPTH))
    else:
        found = read_blocks(flat, name).view(ROWS, DEPTH)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CODES)
def test_codes_and_scales_join_to_the_very_bytes_they_came_from(name: str) -> None:
    flat = torch.from_numpy(random_blocks(name)).flatten()
    assert torch.equal(join_codes(split_codes(flat, name, DEPTH)).flatten(), flat)


def test_our_codes_are_ggufs_numbers() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    for name, kind in CODES.items():
        made = quantize(weight, kind)
        read = gguf.dequantize(join_codes(made).numpy(), gguf.GGMLQuantizationType[name])
        np.testing.assert_array_equal(read, dequantize(made).numpy())


def test_every_type_that_a_file_may_hold_can_be_read() -> None:
    names = {each.name for each in TYPES.values()}
    assert names == set(SCALES) | {name for name in names if is_float(name)}
    for kind in TYPES.values():
        size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.name]]
        assert size == (kind.size, kind.num_bytes)


@pytest.mark.parametrize(("name", "width"), [("F32", 4), ("F16", 2), ("BF16", 2)])
def test_plain_numbers_are_viewed_where_they_are(name: str, width: int) -> None:
    data = torch.zeros(8, dtype=torch.uint8)
    assert read_floats(data, name).data_ptr() == data.data_ptr()
    assert len(read_floats(data, name)) == 8 // width
