"""Logits -> tokens, for many sequences at once; what a row gives depends on that row alone.

Knows what requests wish: penalties, bias, grammars, what may not come yet. As the noise of a draw
is a function of seed and position, so is the token: a draft is accepted when it equals the token
picked without it, and sampled answers are the same with drafts and without. Knows no text and no
model. Next: ops/picking.py, draft.py, engine.py.

Shapes: N rows, V vocabulary, K some of its tokens.
"""

from collections import abc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moestro.api.sampling import Sampling
from moestro.engine.guide import Guide, is_cut
from moestro.engine.request import TokenScore
from moestro.errors import CheckpointError, ConfigError, DataError
from moestro.ops.picking import DAMAGED, EXHAUSTED, Picked, PickRow, pick_tokens

Floats = NDArray[np.float32]
_GREEDY = Sampling(temperature=0)
Outcome = TokenScore | ConfigError | CheckpointError | DataError
# What `TokenScore._make` does, in a third of the time: a burst makes hundreds of them.
_score: Callable[[Picked], TokenScore] = partial(tuple.__new__, TokenScore)


class Penalties:
    """How often each token occurred in one sequence; the engine feeds it each accepted token.

    The repetition penalty looks at prompt and answer, the other two at the answer alone.
    """

    def __init__(self, sampling: Sampling, prompt: abc.Sequence[int]) -> None:
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

    def apply(self, logits_V: Floats, drafts: abc.Sequence[int] = ()) -> None:
        """Change the logits in place, as if the drafts had been accepted too."""
        for token_id in drafts:
            self.accept(token_id)
        num_used = len(self._slots)
        ids_K, counts_K = self._ids[:num_used], self._counts[:num_used]
        is_in_answer_K = counts_K > 0
        is_seen_K = is_in_answer_K | self._is_in_prompt[:num_used]
        kept_K = logits_V[ids_K]
        factor = np.float32(self.sampling.repetition_penalty)
        if factor != 1:
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


@dataclass(kw_only=True, slots=True)
class Row:
    """Whose logits a row holds, and how to pick from them.

    `position` counts the answer's tokens before this one, drafts included. `penalties` is needed
    where the sampling has any; `drafts` are the tokens that it does not know yet, because they are
    guesses. The `stop_token_ids` are out of reach until `min_tokens`, those `banned` always. The
    `guide` has accepted all tokens before this one; a `forced` token is the only one that it
    leaves. Without `top_logprobs` there are no log-probabilities.
    """

    sampling: Sampling
    seed: int
    position: int
    penalties: Penalties | None = None
    drafts: tuple[int, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    banned: abc.Sequence[int] = ()
    guide: Guide | None = None
    forced: int | None = None
    top_logprobs: int | None = None


def pick(logits_NV: Tensor, rows: abc.Sequence[Row]) -> list[Outcome]:
    """Pick each row's next token; a row that has none gets the error for its request instead.

    Log-probabilities are those of the model itself, before any penalty, mask or temperature.
    """
    logits_NV = _plain(logits_NV)
    wishes = [_wish(logits_NV, index, row) for index, row in enumerate(rows)]
    picked = pick_tokens(logits_NV, wishes)
    refused = [
        wish
        for wish, row, guess in zip(wishes, rows, picked, strict=True)
        if row.guide is not None and _is_refused(row, row.guide, wish, guess)
    ]
    if refused:
        for wish, again in zip(refused, pick_tokens(logits_NV, refused), strict=True):
            picked[wish.index] = again
    return [_outcome(row, each) for row, each in zip(rows, picked, strict=True)]


def burst_pick_row(row: Row) -> PickRow:
    """Return how a row picks in a burst, where nothing but noise tells one step from the next.

    What a guide would say is not asked: all picks are guesses.
    """
    assert row.penalties is None
    assert not row.sampling.logit_bias
    assert not row.banned
    wish = PickRow(0, row.sampling, row.seed, row.position, top=row.top_logprobs)
    if row.guide is not None:
        _make_guess(wish)
    return wish


def burst_outcomes(rows: abc.Sequence[Row], picked: abc.Sequence[Picked]) -> list[list[Outcome]]:
    """Return each row's outcomes of a burst; `picked` are all rows', step by step.

    Only the last can be an error: a burst ends where one row cannot pick.
    """
    num = len(rows)
    told: list[list[Outcome]] = []
    for index, row in enumerate(rows):
        own = picked[index::num]
        outcomes: list[Outcome] = list(map(_score, own))
        outcomes[-1] = _outcome(row, own[-1])
        told.append(outcomes)
    return told


def draft(logits_NV: Tensor, rows: abc.Sequence[Row]) -> list[int]:
    """Guess what `pick` will take, with the same noise, but no regard to penalties and masks."""
    wishes = [
        PickRow(index, row.sampling, row.seed, row.position) for index, row in enumerate(rows)
    ]
    # A guess may be wrong, so damaged logits can wait for the model to say so.
    return [max(token_id, 0) for token_id, _, _ in pick_tokens(_plain(logits_NV), wishes)]


def score(logits_NV: Tensor, targets: abc.Sequence[int], top: int) -> list[TokenScore]:
    """Return the targets' log-probabilities and the `top` likeliest tokens at each place.

    Raises CheckpointError where the logits are not finite.
    """
    wishes = [
        PickRow(index, _GREEDY, 0, 0, target=target, top=top)
        for index, target in enumerate(targets)
    ]
    picked = pick_tokens(_plain(logits_NV), wishes)
    if any(token_id == DAMAGED for token_id, _, _ in picked):
        raise _damaged("the prompt")
    return list(map(_score, picked))


def _plain(logits_NV: Tensor) -> Tensor:
    # Asked first: what torch does for nothing takes a microsecond, for each token.
    if logits_NV.is_cpu and logits_NV.dtype == torch.float32 and not logits_NV.requires_grad:
        return logits_NV
    return logits_NV.detach().float().cpu()


def _wish(logits_NV: Tensor, index: int, row: Row) -> PickRow:
    wish = PickRow(index, row.sampling, row.seed, row.position, top=row.top_logprobs)
    if row.forced is not None:
        wish.target = row.forced
        return wish
    is_short = row.position < row.sampling.min_tokens
    banned = [*row.banned, *row.stop_token_ids] if is_short else row.banned
    if row.sampling.logit_bias or row.penalties or banned:
        wish.edited_V = _edit(logits_NV[index], row, banned)
    if row.guide is None:
        return wish
    # Of edited logits nobody tells how likely a token is.
    if row.guide.can_guess(row.sampling) and (wish.edited_V is None or not is_cut(row.sampling)):
        _make_guess(wish)
    else:
        wish.allowed = row.guide.mask()
    return wish


def _make_guess(wish: PickRow) -> None:
    """Let a wish be for the token that no cut keeps from winning, and for how likely it is."""
    if isinstance(wish.knobs, Sampling) and is_cut(wish.knobs):
        wish.knobs = Sampling(temperature=wish.knobs.temperature)
        wish.top = wish.top or 0


def _edit(logits_V: Tensor, row: Row, banned: abc.Sequence[int]) -> Tensor:
    """Return the logits with bias, penalties and ban."""
    edited_V = logits_V.clone()
    array_V = edited_V.numpy()
    bias = row.sampling.logit_bias
    if bias:
        biases_K = np.fromiter(bias.values(), np.float32, len(bias))
        array_V[np.fromiter(bias, np.int64, len(bias))] += biases_K
    if row.penalties:
        row.penalties.apply(array_V, row.drafts)
    if banned:
        array_V[list(banned)] = -np.inf
    return edited_V


def _is_refused(row: Row, guide: Guide, wish: PickRow, guess: Picked) -> bool:
    """Whether a token was guessed that may not come; then the wish gets the mask that it lacks."""
    if wish.allowed is not None or guide.fault is not None or guess[0] < 0:
        return False
    if guide.offer(guess[0], row.sampling, guess[1]):
        return False
    wish.knobs, wish.top, wish.allowed = row.sampling, row.top_logprobs, guide.mask()
    return guide.fault is None


def _outcome(row: Row, picked: Picked) -> Outcome:
    if picked[0] == DAMAGED:
        return _damaged(f"token {row.position} of the answer")
    if row.guide is not None and row.guide.fault is not None:
        # It may turn out too large for its parser at any token; then its request fails alone.
        return row.guide.fault
    if picked[0] == EXHAUSTED or (row.banned and row.forced in row.banned):
        return ConfigError(
            f"no token is left to be token {row.position} of the answer: the grammar, bad_words and"
            f" min_tokens {row.sampling.min_tokens} rule out all of them: lower min_tokens or"
            " relax the grammar"
        )
    if row.guide is not None and row.top_logprobs is None:
        # A guess may have been asked how likely it is.
        return TokenScore(picked[0], None)
    return _score(picked)


def _damaged(place: str) -> CheckpointError:
    return CheckpointError(
        f"the model's logits at {place} are not finite: its weights are damaged, or overflow in"
        " this dtype: check the checkpoint or set engine.dtype to float32"
    )
