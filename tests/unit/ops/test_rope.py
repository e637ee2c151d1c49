"""Rotations keep lengths, products depend on distance alone, YaRN slows slow pairs.

Shapes: S tokens, R rotary width.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moestro.ops import rope

DIM = 16


@pytest.mark.parametrize("is_interleaved", [True, False])
def test_products_depend_on_the_distance_alone(is_interleaved: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query_R, key_R = torch.randn(2, DIM, generator=generator)
    frequencies = rope.frequencies(DIM, 10000.0)

    def product(query_at: int, key_at: int) -> float:
        cos, sin = rope.angles(torch.tensor([query_at, key_at]), frequencies)
        both = rope.rotate(torch.stack([query_R, key_R]), cos, sin, is_interleaved)
        return float(both[0] @ both[1])

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
    assert product(7, 3) != pytest.approx(product(7, 5), abs=1e-3)
    assert product(0, 0) == pytest.approx(float(query_R @ key_R), abs=1e-5)


@given(position=st.integers(0, 100_000), is_interleaved=st.booleans())
def test_a_rotation_keeps_every_pairs_length(position: int, is_interleaved: bool) -> None:
    x_R = torch.randn(DIM, generator=torch.Generator().manual_seed(1))
    cos, sin = rope.angles(torch.tensor(position), rope.frequencies(DIM, 10000.0))
    turned_R = rope.rotate(x_R, cos, sin, is_interleaved)
    before = x_R.view(-1, 2) if is_interleaved else x_R.view(2, -1).T
    after = turned_R.view(2, -1).T
    torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1), atol=1e-5, rtol=1e-5)


def test_the_dtype_of_what_is_rotated_is_kept() -> None:
    cos, sin = rope.angles(torch.arange(3), rope.frequencies(DIM, 10000.0))
    assert rope.rotate(torch.ones(3, DIM).bfloat16(), cos, sin, True).dtype == torch.bfloat16


def test_yarn_keeps_fast_pairs_and_slows_slow_ones_by_the_factor() -> None:
    plain_P = rope.frequencies(64, 10000.0)
    slowed_P = rope.yarn_frequencies(64, 10000.0, 40.0, 4096, (32.0, 1.0))
    ratio_P = plain_P / slowed_P
    # Turns over the original length tell fast pairs from slow ones.
    turns_P = 4096 * plain_P / (2 * math.pi)
    torch.testing.assert_close(ratio_P[turns_P > 40], torch.ones(int((turns_P > 40).sum())))
    slow = turns_P < 0.7
    torch.testing.assert_close(ratio_P[slow], torch.full((int(slow.sum()),), 40.0))
    assert bool((ratio_P[1:] >= ratio_P[:-1] - 1e-5).all())


def test_a_factor_of_one_stretches_nothing() -> None:
    stretched_P = rope.yarn_frequencies(DIM, 10000.0, 1.0, 4096, (32.0, 1.0))
    torch.testing.assert_close(stretched_P, rope.frequencies(DIM, 10000.0))
    assert rope.yarn_mscale(1.0) == rope.yarn_mscale(0.5) == 1.0


def test_an_empty_ramp_divides_by_no_zero() -> None:
    frequencies_P = rope.yarn_frequencies(DIM, 10000.0, 4.0, 4, (1.0, 1.0))
    assert bool(frequencies_P.isfinite().all())
    ends = rope.yarn_frequencies(DIM, 10000.0, 4.0, 64, (1.0, 1.0), truncate=False)
    assert bool(ends.isfinite().all())


def test_the_temperature_correction_is_that_of_the_paper() -> None:
    assert rope.yarn_mscale(40.0) == pytest.approx(1.368888, abs=1e-5)
    assert rope.yarn_mscale(40.0, 0.707) == pytest.approx(1 + 0.0707 * math.log(40))
