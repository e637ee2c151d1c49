"""Logits -> tokens, for many sequences at once; what a row gives depends on that row alone.

A draw takes the token with the greatest sum of tempered logit and Gumbel noise, which follows the
tempered distribution. As the noise is a function of seed and position, so is the token: a draft is
accepted when it equals the token picked without it, and sampled answers are the same with drafts
and without. Knows no text and no model. Next: draft.py, engine.py.

Shapes: N rows, V vocabulary, K some of its tokens.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from moestro.api.sampling import Sampling
from moestro.engine.noise import LEAST, MOST, winner
from moestro.engine.request import TokenScore
from moestro.errors import CheckpointError, ConfigError, DataError

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Outcome = TokenScore | ConfigError | CheckpointError | DataError

# A token that lies further below the best one loses to it, whatever the noise of both.
_REACH = math.ceil(MOST - LEAST)
_LEAST_TEMPERATURE = float(np.finfo(np.float32).tiny)


class Penalties:
    """How often each token occurred in one sequence; the engine feeds it each accepted token.

    The repetition penalty looks at prompt and answer, the other two at the answer alone.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self.sampling = sampling
        self._ids = np.unique(np.asarray(prompt, dtype=np.int64))
        self._is_in_prompt = np.ones(len(self._ids), dtype=np.bool_)
        self._counts = np.zeros(len(self._ids), dtype=np.int32)
        self._slots = {token_id: slot for slot, token_id in enumerate(self._ids.tolist())}

    def accept(self, token_id: int) -> None:
        """Count a token of the answer."""
        slot = self._slots.setdefault(token_id, len(self._slots))
        if slot == len(self._ids):
            self._grow()
        self._ids[slot] = token_id
        self._counts[slot] += 1

    def apply(self, logits_V: Floats, drafts: Sequence[int] = ()) -> None:
        """Change the logits in place, as if the drafts had been accepted too."""
        for token_id in drafts:
            self.accept(token_id)
        num_used = len(self._slots)
        ids_K, counts_K = self._ids[:num_used], self._counts[:num_used]
        is_in_answer_K = counts_K > 0
        is_seen_K = is_in_answer_K | self._is_in_prompt[:num_used]
        kept_K = logits_V[ids_K]
        factor = np.float32(self.sampling.repetition_penalty)
        repeated_K = np.where(kept_K > 0, kept_K / factor, kept_K * factor)
        kept_K = np.where(is_seen_K, repeated_K, kept_K)
        kept_K -= np.float32(self.sampling.frequency_penalty) * counts_K.astype(np.float32)
        kept_K -= np.float32(self.sampling.presence_penalty) * is_in_answer_K
        logits_V[ids_K] = kept_K
        for token_id in drafts:
            self._counts[self._slots[token_id]] -= 1

    def _grow(self) -> None:
        room = max(64, len(self._ids))
        self._ids = np.pad(self._ids, (0, room))
        self._counts = np.pad(self._counts, (0, room))
        self._is_in_prompt = np.pad(self._is_in_prompt, (0, room))


class Guide(Protocol):
    """What may come next in one answer, like text/grammar.py's Grammar; may raise DataError."""

    def allows(self, token_id: int) -> bool:
        """Whether this token may come next."""
        ...

    def mask(self) -> NDArray[np.bool_]:
        """Whether each token of the vocabulary may."""
        ...


@dataclass(frozen=True, kw_only=True)
class Row:
    """Whose logits a row holds, and how to pick from them.

    `position` counts the answer's tokens before this one, drafts included. `penalties` is needed
    where the sampling has any; `drafts` are the tokens that it does not know yet, because they are
    guesses. The `stop_token_ids` are out of reach until `min_tokens`. The `guide` has accepted all
    tokens before this one. Without `top_logprobs` there are no log-probabilities.
    """

    sampling: Sampling
    seed: int
    position: int
    penalties: Penalties | None = None
    drafts: tuple[int, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    guide: Guide | None = None
    top_logprobs: int | None = None


def check(sampling: Sampling, vocab_size: int, stop_token_ids: Iterable[int] = ()) -> None:
    """Refuse token ids that the model does not have."""
    named = (("logit_bias", sampling.logit_bias), ("stop_token_ids", stop_token_ids))
    for name, token_ids in named:
        for token_id in token_ids:
            if not 0 <= token_id < vocab_size:
                raise ConfigError(
                    f"{name} names token {token_id}: the model's ids are 0 to {vocab_size - 1}"
                )


def pick(logits_NV: Tensor, rows: Sequence[Row]) -> list[Outcome]:
    """Pick each row's next token; a row that has none gets the error for its request instead.

    Log-probabilities are those of the model itself, before any penalty, mask or temperature.
    """
    array_NV = _array(logits_NV)
    best_N = array_NV.argmax(axis=1).tolist()
    return [
        _pick_one(logits_V, best, row)
        for logits_V, best, row in zip(array_NV, best_N, rows, strict=True)
    ]


def draft(logits_NV: Tensor, rows: Sequence[Row]) -> list[int]:
    """Guess what `pick` will take, with the same noise, but no regard to penalties and masks."""
    array_NV = _array(logits_NV)
    best_N = array_NV.argmax(axis=1).tolist()
    return [
        best
        if row.sampling.is_greedy or not np.isfinite(logits_V[best])
        else _draw(logits_V, best, row)
        for logits_V, best, row in zip(array_NV, best_N, rows, strict=True)
    ]


def score(logits_NV: Tensor, targets: Sequence[int], top: int) -> list[TokenScore]:
    """Return the targets' log-probabilities and the `top` likeliest tokens at each place.

    Raises CheckpointError where the logits are not finite.
    """
    array_NV = _array(logits_NV)
    if not np.isfinite(array_NV.max(axis=1)).all():
        raise _damaged("the prompt")
    return [
        _score_one(logits_V, target, top)
        for logits_V, target in zip(array_NV, targets, strict=True)
    ]


def _array(logits_NV: Tensor) -> Floats:
    array_NV: Floats = logits_NV.detach().float().cpu().contiguous().numpy()
    return array_NV


def _pick_one(logits_V: Floats, best: int, row: Row) -> Outcome:
    # A NaN anywhere in the row is what numpy's argmax points at.
    if not np.isfinite(logits_V[best]):
        return _damaged(f"token {row.position} of the answer")
    edited_V = _edit(logits_V, row)
    if edited_V is not logits_V:
        best = int(edited_V.argmax())
    try:
        token_id = _choose(edited_V, best, row)
    except DataError as error:
        # It may turn out too large for its parser at any token; then its request fails alone.
        return error
    if token_id is None:
        return ConfigError(
            f"no token is left to be token {row.position} of the answer: the grammar and"
            f" min_tokens {row.sampling.min_tokens} rule out all of them: lower min_tokens or"
            " relax the grammar"
        )
    if row.top_logprobs is None:
        return TokenScore(token_id=token_id, logprob=None)
    return _score_one(logits_V, token_id, row.top_logprobs)


def _damaged(place: str) -> CheckpointError:
    return CheckpointError(
        f"the model's logits at {place} are not finite: its weights are damaged, or overflow in"
        " this dtype: check the checkpoint or set engine.dtype to float32"
    )


def _edit(logits_V: Floats, row: Row) -> Floats:
    """Return the logits with bias, penalties and ban; the same array if there are none."""
    bias = row.sampling.logit_bias
    is_banned = row.position < row.sampling.min_tokens and bool(row.stop_token_ids)
    if not (bias or row.penalties or is_banned):
        return logits_V
    edited_V = logits_V.copy()
    if bias:
        biases_K = np.fromiter(bias.values(), np.float32, len(bias))
        edited_V[np.fromiter(bias, np.int64, len(bias))] += biases_K
    if row.penalties:
        row.penalties.apply(edited_V, row.drafts)
    if is_banned:
        edited_V[list(row.stop_token_ids)] = -np.inf
    return edited_V


def _choose(logits_V: Floats, best: int, row: Row) -> int | None:
    """Take a token that the guide, if there is one, allows; None where none is left."""
    is_greedy = row.sampling.is_greedy
    if logits_V[best] == -np.inf:
        return None
    if row.guide is None:
        return best if is_greedy else _draw(logits_V, best, row)
    # Asking for one token is cheaper than a mask, and a good model's best one mostly follows.
    if is_greedy and row.guide.allows(best):
        return best
    ids_K = np.flatnonzero(row.guide.mask())
    logits_K = logits_V[ids_K]
    if not logits_K.max(initial=-np.inf) > -np.inf:
        return None
    best = int(logits_K.argmax())
    return int(ids_K[best]) if is_greedy else _draw(logits_K, best, row, ids_K)


def _draw(logits_K: Floats, best: int, row: Row, ids_K: Ids | None = None) -> int:
    """Take the token whose tempered logit and noise have the greatest sum.

    The logits belong to `ids_K`, in rising order; without them to the whole vocabulary.
    """
    # Below the best one all is negative: where a small temperature overflows, it rules out.
    with np.errstate(over="ignore"):
        tempered_K = (logits_K - logits_K[best]) / np.float32(
            max(row.sampling.temperature, _LEAST_TEMPERATURE)
        )
    kept = _keep(tempered_K, row.sampling)
    kept_ids = kept if ids_K is None else ids_K[kept]
    return int(kept_ids[winner(tempered_K[kept], kept_ids, row.seed, row.position)])


def _keep(tempered_V: Floats, sampling: Sampling) -> Ids:
    """Return where the tokens are that top-k, then top-p of those, then min-p leave.

    Those that cannot win are left out. The best tempered logit is 0. Each of the three keeps a run
    of the likeliest tokens, lower ids first among equals.
    """
    floor = max(-_REACH, math.log(sampling.min_p)) if sampling.min_p > 0 else -_REACH
    vocab_size = len(tempered_V)
    num = min(sampling.top_k, vocab_size) if sampling.top_k > 0 else vocab_size
    if sampling.top_p < 1:
        left_K = tempered_V[_likeliest(tempered_V, num)] if num < vocab_size else tempered_V
        num = _nucleus_size(left_K, sampling.top_p)
    if num == vocab_size:
        return np.flatnonzero(tempered_V >= floor)
    ids_K = _likeliest(tempered_V, num)
    return ids_K[tempered_V[ids_K] >= floor]


def _likeliest(logits_V: Floats, num: int) -> Ids:
    """Return the `num` likeliest tokens, in no particular order."""
    edge = np.partition(logits_V, -num)[-num]
    above_K = np.flatnonzero(logits_V > edge)
    equal_K = np.flatnonzero(logits_V == edge)
    return np.concatenate((above_K, equal_K[: num - len(above_K)]))


def _nucleus_size(tempered_V: Floats, top_p: float) -> int:
    """Return how many of the likeliest tokens it takes to reach a share of `top_p`."""
    weights_V = np.exp(tempered_V)
    total = weights_V.sum(dtype=np.float64)
    # Tokens lighter than this do not reach the remaining share even all together.
    heavy_K = weights_V[weights_V >= (1 - top_p) * total / len(weights_V)]
    mass_K = np.sort(heavy_K)[::-1].cumsum(dtype=np.float64)
    return min(int(np.searchsorted(mass_K, top_p * total)) + 1, len(mass_K))


def _score_one(logits_V: Floats, token_id: int, top: int) -> TokenScore:
    relative_V = logits_V - logits_V.max()
    log_sum = math.log(np.exp(relative_V).sum(dtype=np.float64))
    return TokenScore(
        token_id=token_id,
        logprob=float(relative_V[token_id]) - log_sum,
        alternatives=tuple(
            (alternative, float(relative_V[alternative]) - log_sum)
            for alternative in _ranked(relative_V, top)
        ),
    )


def _ranked(logits_V: Floats, num: int) -> list[int]:
    """Return the `num` likeliest tokens that are possible at all, likeliest first."""
    if num == 0:
        return []
    ids_K = _likeliest(logits_V, min(num, len(logits_V)))
    ids_K = ids_K[logits_V[ids_K] > -np.inf]
    ranked: list[int] = ids_K[np.argsort(-logits_V[ids_K], kind="stable")].tolist()
    return ranked
