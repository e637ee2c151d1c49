"""Rows of logits -> tokens and log-probabilities; what a row gives depends on that row alone.

A draw takes the token with the greatest sum of tempered logit and Gumbel noise, which follows the
tempered distribution. numpy is the specification, native/pick.h the fast twin. Knows no requests.
Next: noise.py.

Shapes: N rows, V vocabulary, K some of its tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moestro.ops.choose import native_for
from moestro.ops.compare import draw
from moestro.ops.native import NativeKernels
from moestro.ops.noise import LEAST, MOST, noise_stream, winner

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
# A token, its log-probability where it was asked for, and those of alternatives, likeliest first.
Picked = tuple[int, float | None, tuple[tuple[int, float], ...]]

# In place of a token, as native/picking.h has them: logits that are not finite; nothing left.
DAMAGED, EXHAUSTED = -1, -2

# A token that lies further below the best one loses to it, whatever the noise of both.
_REACH = math.ceil(MOST - LEAST)
_LEAST_TEMPERATURE = float(np.finfo(np.float32).tiny)


class Knobs(Protocol):
    """How tokens are picked; temperature 0 takes the likeliest, `top_k` 0 is off."""

    @property
    def temperature(self) -> float: ...  # noqa: D102  (the class says it)
    @property
    def top_k(self) -> int: ...  # noqa: D102
    @property
    def top_p(self) -> float: ...  # noqa: D102
    @property
    def min_p(self) -> float: ...  # noqa: D102


@dataclass(slots=True)
class PickRow:
    """How to pick from row `index` of logits: by `knobs`, with the noise of a seed's position.

    `edited_V` are the logits to pick from where they are not the model's own. `allowed` has a bit
    for each token that may be picked, the lowest first, in whole 32-bit words. A `target` is scored
    in place of a token to be picked. Without `top` there are no log-probabilities; with it, those
    of the likeliest `top` tokens too, likeliest first.
    """

    index: int
    knobs: Knobs
    seed: int
    position: int
    edited_V: Tensor | None = None
    allowed: bytes | None = None
    target: int | None = None
    top: int | None = None


def pick_tokens(logits_NV: Tensor, rows: Sequence[PickRow]) -> list[Picked]:
    """Pick a token for each of some rows of the logits, or score its target.

    Top-k keeps the likeliest tokens, top-p the likeliest of those that reach its share together,
    min-p those that are no less than its share of the likeliest one; lower ids go first among
    equals. Log-probabilities are those of the model's own logits.
    """
    assert logits_NV.dtype == torch.float32
    kernels = native_for(logits_NV, torch.float32, find_fault)
    if kernels is not None:
        return _pick_natively(kernels, logits_NV.contiguous(), rows)
    array_NV = logits_NV.detach().cpu().numpy()
    return [_pick(array_NV[row.index], row) for row in rows]


@dataclass(frozen=True)
class _CheckedKnobs:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def find_fault(kernels: NativeKernels) -> str | None:
    """Compare with the twin: the likeliest, draws from all and from some, log-probabilities."""
    logits_NV = draw(4, 300, scale=3.0, dtype=torch.float32)
    knobs = (
        _CheckedKnobs(temperature=0.0),
        _CheckedKnobs(),
        _CheckedKnobs(temperature=0.7, top_k=20),
        _CheckedKnobs(top_p=0.8, min_p=0.01),
    )
    rows = [PickRow(index, each, seed=7, position=index, top=3) for index, each in enumerate(knobs)]
    twins = [_pick(logits_NV[row.index].numpy(), row) for row in rows]
    for found, expected in zip(_pick_natively(kernels, logits_NV, rows), twins, strict=True):
        is_close = found[1] is not None and math.isclose(found[1], expected[1] or 0, abs_tol=1e-4)
        ids = [[pick[0], *(token_id for token_id, _ in pick[2])] for pick in (found, expected)]
        if ids[0] != ids[1] or not is_close:
            return f"picking tokens gives {found}, where it should be {expected}"
    return None


def describe_row(kernels: NativeKernels, row: PickRow, logits: int, vocab_size: int) -> Any:
    """Describe a row, whose logits are at an address, to C++."""
    edited_V, knobs = row.edited_V, row.knobs
    assert row.target is None or 0 <= row.target < vocab_size
    # C++ reads masks by words of 32 bits.
    assert row.allowed is None or len(row.allowed) >= 4 * -(-vocab_size // 32)
    return kernels.native.PickRow(
        logits=logits,
        edited=logits if edited_V is None else _address(edited_V, vocab_size),
        allowed=row.allowed,
        temperature=0.0 if knobs.temperature == 0 else max(knobs.temperature, _LEAST_TEMPERATURE),
        top_k=min(knobs.top_k, vocab_size),
        top_p=knobs.top_p,
        floor=_floor(knobs.min_p),
        stream=noise_stream(row.seed),
        position=row.position,
        target=-1 if row.target is None else row.target,
        num_alternatives=-1 if row.top is None else row.top,
    )


def _pick_natively(
    kernels: NativeKernels, logits_NV: Tensor, rows: Sequence[PickRow]
) -> list[Picked]:
    N, V = logits_NV.shape
    first, stride = logits_NV.data_ptr(), V * logits_NV.element_size()
    described = []
    for row in rows:
        assert 0 <= row.index < N
        logits = first + row.index * stride
        described.append(describe_row(kernels, row, logits, V))
    picked: list[Picked] = kernels.library.pick_tokens(described, V, torch.get_num_threads())
    return picked


def _address(edited_V: Tensor, vocab_size: int) -> int:
    assert edited_V.dtype == torch.float32
    assert edited_V.is_contiguous()
    assert edited_V.shape == (vocab_size,)
    return edited_V.data_ptr()


def _floor(min_p: float) -> float:
    return max(-_REACH, math.log(min_p)) if min_p > 0 else -_REACH


def _pick(logits_V: Floats, row: PickRow) -> Picked:
    best = int(logits_V.argmax())
    # A NaN anywhere in the row is what numpy's argmax points at.
    if not np.isfinite(logits_V[best]):
        return DAMAGED, None, ()
    token_id = _choose(logits_V, row) if row.target is None else row.target
    if token_id < 0 or row.top is None:
        return token_id, None, ()
    return _score(logits_V, token_id, row.top)


def _choose(logits_V: Floats, row: PickRow) -> int:
    """Take a token of those allowed."""
    edited_V = logits_V if row.edited_V is None else row.edited_V.numpy()
    if row.allowed is None:
        ids_K = np.arange(len(edited_V))
    else:
        bits = np.frombuffer(row.allowed, dtype=np.uint8)
        ids_K = np.flatnonzero(np.unpackbits(bits, count=len(edited_V), bitorder="little"))
    logits_K = edited_V[ids_K]
    if not logits_K.max(initial=-np.inf) > -np.inf:
        return EXHAUSTED
    best = int(logits_K.argmax())
    return int(ids_K[best]) if row.knobs.temperature == 0 else _draw(logits_K, best, ids_K, row)


def _draw(logits_K: Floats, best: int, ids_K: Ids, row: PickRow) -> int:
    """Take the token whose tempered logit and noise have the greatest sum; ids rise."""
    inverse = np.float32(1) / np.float32(max(row.knobs.temperature, _LEAST_TEMPERATURE))
    # Below the best one all is negative: where a small temperature overflows, it rules out.
    with np.errstate(over="ignore"):
        tempered_K = (logits_K - logits_K[best]) * inverse
    kept = _keep(tempered_K, row.knobs)
    return int(ids_K[kept][winner(tempered_K[kept], ids_K[kept], row.seed, row.position)])


def _keep(tempered_K: Floats, knobs: Knobs) -> Ids:
    """Return where the tokens are that top-k, then top-p of those, then min-p leave.

    Those that cannot win are left out. The best tempered logit is 0. Each of the three keeps a run
    of the likeliest tokens, lower ids first among equals.
    """
    floor, most = _floor(knobs.min_p), len(tempered_K)
    num = min(knobs.top_k, most) if knobs.top_k > 0 else most
    if knobs.top_p < 1:
        left_K = tempered_K[_likeliest(tempered_K, num)] if num < most else tempered_K
        num = _nucleus_size(left_K, knobs.top_p)
    if num == most:
        return np.flatnonzero(tempered_K >= floor)
    kept = _likeliest(tempered_K, num)
    return kept[tempered_K[kept] >= floor]


def _likeliest(logits_V: Floats, num: int) -> Ids:
    """Return the `num` likeliest tokens, in no particular order."""
    edge = np.partition(logits_V, -num)[-num]
    above_K = np.flatnonzero(logits_V > edge)
    equal_K = np.flatnonzero(logits_V == edge)
    return np.concatenate((above_K, equal_K[: num - len(above_K)]))


def _nucleus_size(tempered_K: Floats, top_p: float) -> int:
    """Return how many of the likeliest tokens it takes to reach a share of `top_p`."""
    weights_K = np.exp(tempered_K)
    total = weights_K.sum(dtype=np.float64)
    # Tokens lighter than this do not reach the remaining share even all together.
    heavy_K = weights_K[weights_K >= (1 - top_p) * total / len(weights_K)]
    mass_K = np.sort(heavy_K)[::-1].cumsum(dtype=np.float64)
    return min(int(np.searchsorted(mass_K, top_p * total)) + 1, len(mass_K))


def _score(logits_V: Floats, token_id: int, top: int) -> Picked:
    below_V = logits_V - logits_V.max()
    log_sum = math.log(np.exp(below_V).sum(dtype=np.float64))
    alternatives = tuple((each, float(below_V[each]) - log_sum) for each in _ranked(below_V, top))
    return token_id, float(below_V[token_id]) - log_sum, alternatives


def _ranked(logits_V: Floats, num: int) -> list[int]:
    """Return the `num` likeliest tokens that are possible at all, likeliest first."""
    if num == 0:
        return []
    ids_K = _likeliest(logits_V, min(num, len(logits_V)))
    ids_K = ids_K[logits_V[ids_K] > -np.inf]
    ranked: list[int] = ids_K[np.lexsort((ids_K, -logits_V[ids_K]))].tolist()
    return ranked
