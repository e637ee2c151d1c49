"""Tokens written out for readers: name, bytes, log-probabilities, experts.

Knows tokens, not where they stand in an answer. Next: choice.py.
"""

from dataclasses import dataclass
from functools import lru_cache

from moestro.api.chunks import Alternative, Token, Visit
from moestro.engine.request import NewToken, TokenScore
from moestro.text.tokenizer import Tokenizer

_REMEMBERED_NAMES = 65_536


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a reader wants to know of each token.

    With `shows_special` a special token stands for its name, else for no text.
    """

    top_logprobs: int | None = None
    wants_xray: bool = False
    shows_special: bool = False


class Names:
    """Writes tokens out for readers."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # The same few thousand tokens make up most answers and alternatives.
        self._text = lru_cache(_REMEMBERED_NAMES)(tokenizer.token_text)

    def describe(self, token: NewToken, wish: Wish) -> Token:
        """Write out a token of an answer."""
        visits = tuple(
            tuple(Visit(expert=expert, weight=weight) for expert, weight in layer)
            for layer in token.visits
        )
        return self._token(token.score, wish, token.num_experts, visits if wish.wants_xray else ())

    def describe_prompt(self, score: TokenScore, wish: Wish) -> Token:
        """Write out a token of a prompt."""
        return self._token(score, wish, None, ())

    def _token(
        self,
        score: TokenScore,
        wish: Wish,
        num_experts: float | None,
        visits: tuple[tuple[Visit, ...], ...],
    ) -> Token:
        top = wish.top_logprobs
        return Token(
            token_id=score.token_id,
            text=self._text(score.token_id),
            data=self._data(score.token_id, wish),
            logprob=None if top is None else score.logprob,
            alternatives=tuple(
                Alternative(
                    token_id=token_id,
                    text=self._text(token_id),
                    data=self._data(token_id, wish),
                    logprob=logprob,
                )
                for token_id, logprob in score.alternatives[: top or 0]
            ),
            num_experts=num_experts,
            visits=visits,
        )

    def _data(self, token_id: int, wish: Wish) -> bytes:
        data = self._tokenizer.token_bytes(token_id)
        return self._text(token_id).encode() if wish.shows_special and not data else data
