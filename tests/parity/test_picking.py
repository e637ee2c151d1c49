"""Tokens picked by the native kernels equal their numpy twin's, alone and in company.

Shapes: N rows, V vocabulary.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from moestro.api.sampling import Sampling
from moestro.ops import picking
from moestro.ops.native import NativeKernels, load_native
from moestro.ops.picking import DAMAGED, EXHAUSTED, Picked, PickRow
from tests.parity.threads import threads
from tests.unit.engine.picking import pack_bits

NATIVE = pytest.importorskip("moestro.ops._native", reason="built without a compiler")
# Around a panel of sixteen, a word of thirty-two bits, and what is summed up at once.
SIZES = [1, 2, 15, 16, 17, 33, 300, 1024, 1025, 4099, 32_768]
SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(),
    Sampling(temperature=0.3, top_p=0.5),
    Sampling(temperature=2.5, top_p=0.999),
    Sampling(top_k=1),
    Sampling(top_k=40),
    Sampling(temperature=0.7, top_k=700, top_p=0.9),
    Sampling(min_p=0.05),
    Sampling(top_k=40, top_p=0.95, min_p=0.02),
    Sampling(temperature=1e-9, top_p=0.1),
]
SPREADS = ["normal", "flat", "peaked", "ties"]


@pytest.fixture(params=NATIVE.instruction_sets())
def kernels(request: pytest.FixtureRequest) -> NativeKernels:
    return NativeKernels(request.param, load_native())


def draw_logits(N: int, V: int, spread: str) -> Tensor:
    logits_NV = torch.randn(N, V, generator=torch.Generator().manual_seed(V))
    factor = {"normal": 3.0, "flat": 0.1, "peaked": 9.0, "ties": 2.0}[spread]
    logits_NV *= factor
    return logits_NV.round() if spread == "ties" else logits_NV


def mixed_rows(logits_NV: Tensor) -> list[PickRow]:
    """All samplings, some with masks, edits, targets and alternatives."""
    N, V = logits_NV.shape
    chance = np.random.default_rng(V)
    rows = []
    for index in range(N):
        row = PickRow(index, SAMPLINGS[index % len(SAMPLINGS)], int(chance.integers(2**62)), index)
        if index % 3 == 1:
            share = chance.choice([0.01, 0.5, 0.99])
            row.allowed = pack_bits((chance.random(V) < share).tolist())
        if index % 4 == 2:
            row.edited_V = logits_NV[index] + torch.from_numpy(chance.normal(size=V)).float()
        if index % 7 == 3:
            row.target = int(chance.integers(V))
        row.top = (None, 0, 5, min(V + 3, 500))[index % 4]
        rows.append(row)
    return rows


def natively(kernels: NativeKernels, logits_NV: Tensor, rows: list[PickRow]) -> list[Picked]:
    return picking._pick_natively(kernels, logits_NV, rows)


def by_twin(logits_NV: Tensor, rows: list[PickRow]) -> list[Picked]:
    return [picking._pick(logits_NV[row.index].numpy(), row) for row in rows]


@pytest.mark.parametrize("V", SIZES)
@pytest.mark.parametrize("spread", SPREADS)
def test_tokens_and_scores_are_the_twins(kernels: NativeKernels, V: int, spread: str) -> None:
    logits_NV = draw_logits(28, V, spread)
    rows = mixed_rows(logits_NV)
    pairs = zip(natively(kernels, logits_NV, rows), by_twin(logits_NV, rows), strict=True)
    for row, (ours, theirs) in zip(rows, pairs, strict=True):
        assert ours[0] == theirs[0], row
        assert (ours[1] is None) == (theirs[1] is None)
        if ours[1] is not None:
            assert ours[1] == pytest.approx(theirs[1], abs=3e-6)
        assert [token_id for token_id, _ in ours[2]] == [token_id for token_id, _ in theirs[2]]
        logprobs = [logprob for _, logprob in theirs[2]]
        assert [logprob for _, logprob in ours[2]] == pytest.approx(logprobs, abs=3e-6)


@pytest.mark.parametrize("V", [33, 4099, 32_768])
def test_a_row_keeps_its_bits_in_any_company_and_on_any_number_of_threads(
    kernels: NativeKernels, V: int
) -> None:
    logits_NV = draw_logits(20, V, "normal")
    rows = mixed_rows(logits_NV)
    together = natively(kernels, logits_NV, rows)
    with threads(1):
        assert natively(kernels, logits_NV, rows) == together
    for row, expected in zip(rows, together, strict=True):
        assert natively(kernels, logits_NV, [row]) == [expected]
        # Where in memory the logits lie does not matter either.
        shifted = torch.empty(V + 3)[3:].copy_(logits_NV[row.index])
        row.index = 0
        assert natively(kernels, shifted[None], [row]) == [expected]


def test_draws_of_many_places_are_the_twins(kernels: NativeKernels) -> None:
    logits_NV = draw_logits(1, 3000, "normal")
    rows = [PickRow(0, Sampling(), seed, seed * 7) for seed in range(500)]
    assert natively(kernels, logits_NV, rows) == by_twin(logits_NV, rows)
    assert len({token_id for token_id, _, _ in by_twin(logits_NV, rows)}) > 50


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(), Sampling(top_p=0.5)])
@pytest.mark.parametrize("V", [1, 40, 5000])
def test_rows_without_a_token_say_why(kernels: NativeKernels, sampling: Sampling, V: int) -> None:
    logits_NV = torch.zeros(4, V)
    logits_NV[0, V // 2] = torch.nan
    logits_NV[1, V - 1] = torch.inf
    logits_NV[2] = -torch.inf
    rows = [PickRow(index, sampling, 0, 0, top=2) for index in range(4)]
    rows[3].allowed = pack_bits([False] * V)
    expected: list[Picked] = [(code, None, ()) for code in [DAMAGED] * 3 + [EXHAUSTED]]
    assert natively(kernels, logits_NV, rows) == by_twin(logits_NV, rows) == expected


@pytest.mark.parametrize("V", [16, 20_000])
@pytest.mark.parametrize("num", [1, 7, 4000])
def test_equal_tokens_are_cut_off_by_their_ids(kernels: NativeKernels, V: int, num: int) -> None:
    # More equals than are ever sorted.
    rows = [PickRow(0, Sampling(top_k=num), 5, position) for position in range(60)]
    rows += [PickRow(0, Sampling(top_p=min(num / V, 1)), 5, position) for position in range(60)]
    picked = natively(kernels, torch.zeros(1, V), rows)
    assert picked == by_twin(torch.zeros(1, V), rows)
    assert max(token_id for token_id, _, _ in picked) < num


def test_what_does_not_fit_is_refused(kernels: NativeKernels) -> None:
    logits_NV = torch.zeros(2, 40)
    for wrong in (
        PickRow(2, Sampling(), 0, 0),
        PickRow(0, Sampling(), 0, 0, target=40),
        PickRow(0, Sampling(), 0, 0, allowed=b"\1\1\1\1"),
        PickRow(0, Sampling(), 0, 0, edited_V=torch.zeros(39)),
    ):
        with pytest.raises(AssertionError):
            natively(kernels, logits_NV, [wrong])
