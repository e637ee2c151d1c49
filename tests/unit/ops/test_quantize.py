"""Codes in groups of 32: the layout that the kernels and GGUF rely on, and errors within bounds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moestro.ops.quantize import (
    Kind,
    Quantized,
    codes_shape,
    dequantize,
    from_nibbles,
    num_groups,
    quantize,
    scales_shape,
)

KINDS: tuple[Kind, ...] = ("int8", "int4")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 64), (5, 33), (2, 4, 7), (1, 1), (2, 3, 4, 96)])
def test_shapes_and_types_are_those_of_the_contract(kind: Kind, shape: tuple[int, ...]) -> None:
    made = quantize(draw(*shape), kind)
    assert made.codes.shape == codes_shape(shape, kind)
    assert made.scales.shape == scales_shape(shape)
    assert made.codes.dtype == (torch.int8 if kind == "int8" else torch.uint8)
    assert made.scales.dtype == torch.float16
    assert (made.depth, made.kind) == (shape[-1], kind)
    assert dequantize(made).shape == shape
    assert dequantize(made).dtype == torch.float32


@given(
    rows=st.integers(1, 5), depth=st.integers(1, 100), seed=st.integers(0, 99),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
)  # fmt: skip
def test_no_number_moves_by_more_than_half_a_step(
    rows: int, depth: int, seed: int, scale: float
) -> None:
    weight = scale * draw(rows, depth, seed=seed)
    made = quantize(weight, "int8")
    step = made.scales.float().abs().repeat_interleave(32, dim=-1)[:, :depth]
    # The largest number of a group may end a hair outside, where float16 rounds its scale down.
    assert ((dequantize(made) - weight).abs() <= 0.57 * step + 1e-9).all()


def test_the_filling_of_the_last_group_is_zero() -> None:
    weight = draw(4, 40)
    assert (quantize(weight, "int8").codes[:, 40:] == 0).all()
    assert (from_nibbles(quantize(weight, "int4").codes)[:, 40:] == 0).all()


def test_a_byte_holds_an_input_and_the_one_sixteen_further() -> None:
    packed = torch.arange(16, dtype=torch.uint8)[None] | 0x30
    codes = from_nibbles(packed)[0]
    assert codes[:16].tolist() == [j - 8 for j in range(16)]
    assert codes[16:].tolist() == [3 - 8] * 16
    made = Quantized(packed, torch.tensor([[0.5]], dtype=torch.float16), 32, "int4")
    assert dequantize(made)[0, 5].item() == (5 - 8) * 0.5


def test_int4_is_closer_than_the_largest_number_on_code_minus_eight() -> None:
    weight = draw(2000, 64)
    groups = weight.view(-1, 32)
    peak = groups.gather(1, groups.abs().argmax(dim=1, keepdim=True))
    step = (peak / -8).half().float()
    simple = (groups / step).round().clamp(-8, 7) * step
    ours = dequantize(quantize(weight, "int4")).view(-1, 32)
    assert (ours - groups).square().sum() < 0.9 * (simple - groups).square().sum()


def test_importance_moves_the_error_to_inputs_that_matter_less() -> None:
    weight = draw(500, 64)
    importance = torch.ones(64)
    importance[::4] = 25.0

    def weighted(made: Quantized) -> float:
        return ((dequantize(made) - weight).square() * importance).sum().item()

    assert weighted(quantize(weight, "int4", importance)) < 0.95 * weighted(
        quantize(weight, "int4")
    )


def test_inputs_that_never_occur_leave_a_group_as_it_would_be() -> None:
    weight = draw(8, 64)
    silent = quantize(weight, "int4", torch.zeros(64))
    assert torch.equal(silent.codes, quantize(weight, "int4").codes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 1e-12, 1e9])
def test_no_group_becomes_something_that_is_no_number(kind: Kind, value: float) -> None:
    found = dequantize(quantize(torch.full((2, 32), value), kind))
    assert found.isfinite().all()
    if value == 0:
        assert (found == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_twice_changes_nothing(kind: Kind) -> None:
    once = dequantize(quantize(draw(16, 96), kind))
    again = dequantize(quantize(once, kind))
    torch.testing.assert_close(again, once, rtol=2e-3, atol=2e-3)


def test_groups_are_counted_upward() -> None:
    assert [num_groups(depth) for depth in (1, 32, 33, 64)] == [1, 1, 2, 2]
