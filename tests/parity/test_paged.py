"""Attention over pages equals attention over whole sequences, and keeps its bits in any company."""

import pytest
import torch
from torch import Tensor

from moestro.ops.expansion import Expansion
from moestro.ops.latent import absorbed
from moestro.ops.paged import Group, paged, paged_one_by_one
from moestro.ops.projected import Latents, Query
from moestro.ops.rows import measure_row_multiple, round_up

H, N, R, V, C, Z = 3, 8, 4, 6, 12, 16
NUM_BLOCKS = 24


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_query(num_tokens: int, seed: int = 0) -> Query:
    return Query(
        draw(1, num_tokens, H, N, seed=seed), draw(1, num_tokens, H, R, seed=seed + 1), 0.3
    )


def cut(query: Query, rows: slice) -> Query:
    return Query(query.nope_BSHN[:, rows], query.rope_BSHR[:, rows], query.scale)


PAGES = draw(NUM_BLOCKS, Z, C + R, seed=5)
UP = draw(H, N + V, C, seed=6)
# Two sequences with one new token each, one with three, one with a long prompt.
GROUPS = [
    Group(0, torch.tensor([[3, 7, 1], [2, 9, 4]]), torch.tensor([[40], [17]])),
    Group(2, torch.tensor([[5, 11]]), torch.tensor([[20, 21, 22]])),
    Group(5, torch.arange(12, 24)[None], torch.arange(10, 181)[None]),
]
NUM_TOKENS = 5 + 171
SHAPES = [(1, NUM_BLOCKS * Z, C + R), (H, C, N), (H, V, C)]


def test_paged_equals_its_specification() -> None:
    query = make_query(NUM_TOKENS)
    expected = paged_one_by_one(query, PAGES, GROUPS, UP)
    torch.testing.assert_close(
        paged(query, PAGES, GROUPS, Expansion(UP), 1), expected, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        paged(query, PAGES, GROUPS, Expansion(UP), 4), expected, atol=1e-5, rtol=1e-5
    )


def test_paged_equals_contiguous() -> None:
    query = make_query(171)
    keys = PAGES[12:].flatten(0, 1)[None, :180]
    whole = absorbed(
        query.nope_BSHN, query.rope_BSHR, Latents(keys[..., :C], keys[..., C:]), UP, query.scale
    )[0]
    group = Group(0, torch.arange(12, 24)[None], torch.arange(10, 181)[None])
    torch.testing.assert_close(
        paged(query, PAGES, [group], Expansion(UP), 1), whole, atol=1e-5, rtol=1e-5
    )


def test_rows_of_no_group_are_zero() -> None:
    query = make_query(4)
    out = paged(
        query, PAGES, [Group(0, torch.tensor([[1]]), torch.tensor([[3]]))], Expansion(UP), 1
    )
    assert out[1:].abs().max() == 0
    assert out[0].abs().max() > 0


@pytest.mark.parametrize("size", [5, 8, 32, 160])
def test_a_prompts_bits_do_not_depend_on_its_chunks(size: int) -> None:
    multiple = measure_row_multiple(SHAPES, torch.float32)
    assert multiple is not None
    query = make_query(192)
    lengths = torch.arange(10, 170)
    whole = Group(0, torch.arange(12, 24)[None], lengths[None])
    expected = paged(query, PAGES, [whole], Expansion(UP), multiple)
    for start in range(0, 160, size):
        part = lengths[start : start + size]
        # Chunks are of any size, batches are filled up to the multiple.
        rows = slice(start, start + round_up(len(part), multiple))
        group = Group(0, torch.arange(12, 24)[None], part[None])
        alone = paged(cut(query, rows), PAGES, [group], Expansion(UP), multiple)
        assert torch.equal(alone[: len(part)], expected[start : start + size])


def test_an_answers_bits_do_not_depend_on_the_others_lengths() -> None:
    multiple = measure_row_multiple(SHAPES, torch.float32)
    assert multiple is not None
    query = make_query(multiple)
    short = Group(0, torch.tensor([[3, 7]]), torch.tensor([[17]]))
    alone = paged(query, PAGES, [short], Expansion(UP), multiple)[0]
    table = torch.tensor([[3, 7, 0, 0, 0, 0, 0, 0, 0], list(range(12, 21))])
    among = Group(0, table, torch.tensor([[17], [140]]))
    assert torch.equal(paged(query, PAGES, [among], Expansion(UP), multiple)[0], alone)
