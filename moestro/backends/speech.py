"""Tokens in; text that is certain out, each token together with the text that it stands for.

Tokens are held back as long as their text may still turn out to be part of a stop string, so that
what a reader gets as tokens and as text is the same. Knows no model. Next: choice.py.
"""

import codecs
from collections import deque
from collections.abc import Sequence

from moestro.api.chunks import Token
from moestro.text.stream import TextStream
from moestro.text.tokenizer import Tokenizer

Released = tuple[str, list[Token]]


class Speech:
    """One answer's text and tokens. `stop` is the stop string that ended it, or None.

    Stop strings that are among `kept` are the text's last part. Special tokens of which `marks` are
    made are part of the text by their names; a stop string does not reach across one.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        marks: Sequence[str] = (),
        kept: Sequence[str] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._marks = marks
        self._kept = kept
        self._pending: deque[tuple[int, Token]] = deque()
        self._num_out = 0
        self._restart()

    @property
    def stop(self) -> str | None:
        """The stop string that ended the answer."""
        return self._stream.stop

    def push(self, token: Token) -> Released:
        """Take one more token; return the text and the tokens that are certain now."""
        if self._marks and self._is_mark(token):
            return self._push_mark(token)
        self._pending.append((self._num_in, token))
        self._num_in += len(self._decoder.decode(token.data))
        return self._release(self._stream.push_bytes(token.data))

    def finish(self) -> Released:
        """Return what was held back."""
        self._num_in += len(self._decoder.decode(b"", final=True))
        return self._release(self._stream.finish())

    def _push_mark(self, token: Token) -> Released:
        text, tokens = self.finish()
        if self.stop is not None:
            return text, tokens
        self._restart()
        self._num_out += len(token.text)
        self._num_in = self._num_out
        return text + token.text, [*tokens, token]

    def _is_mark(self, token: Token) -> bool:
        is_special = bool(token.text) and not token.data
        return is_special and any(token.text in mark for mark in self._marks)

    def _restart(self) -> None:
        self._stream = TextStream(self._tokenizer, self._stops, kept=self._kept)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_in = self._num_out

    def _release(self, text: str) -> Released:
        self._num_out += len(text)
        tokens = []
        while self._pending and self._is_out(self._pending[0][0]):
            tokens.append(self._pending.popleft()[1])
        return text, tokens

    def _is_out(self, start: int) -> bool:
        # Where nothing is held back, half a character need not wait for its other half.
        return start < self._num_out or self._num_in <= self._num_out
