"""Log-probabilities in OpenAI's two formats: parallel lists for completions, objects for chats.

Knows nothing of choices. Next: openai_choices.py.
"""

import codecs
from collections.abc import Sequence
from typing import Any

from moestro.api.chunks import Alternative, Token

# JSON has no infinity; OpenAI's clients know this as "never".
_LOWEST = -9999.0


class TextOffsets:
    """Where each token of one choice begins in its text, in characters."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._length = 0

    def advance(self, token: Token) -> int:
        """Take the next token; return where it begins."""
        start = self._length
        self._length += len(self._decoder.decode(token.data))
        return start


def completion_logprobs(tokens: Sequence[Token], offsets: TextOffsets) -> dict[str, Any]:
    """Write what `/v1/completions` says of tokens; a prompt's first token has nothing to tell."""
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [_likeliest(token) for token in tokens],
        "text_offset": [offsets.advance(token) for token in tokens],
    }


def chat_logprobs(tokens: Sequence[Token]) -> dict[str, Any]:
    """Write what `/v1/chat/completions` says of tokens."""
    content = [
        _entry(token) | {"top_logprobs": [_entry(each) for each in token.alternatives]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _entry(token: Token | Alternative) -> dict[str, Any]:
    logprob = _finite(token.logprob)
    return {"token": token.text, "logprob": logprob, "bytes": list(token.data)}


def _likeliest(token: Token) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    shown: dict[str, float] = {}
    for each in token.alternatives:
        # Two tokens may look alike, as halves of characters do: the likelier one is shown.
        shown.setdefault(each.text, max(each.logprob, _LOWEST))
    # The token taken is among them always, so that one sees whether it was the likeliest.
    return shown | {token.text: max(token.logprob, _LOWEST)}


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, _LOWEST)
