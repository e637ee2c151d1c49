"""One choice of an answer: the engine's tokens become chunks for a reader.

Knows one choice; the request as a whole is answers.py's. Next: speech.py, reading.py.
"""

from collections.abc import Collection

from moestro.api.chunks import Chunk, Finish, Token
from moestro.backends.reading import Passage, Reading
from moestro.backends.speech import Released, Speech


class Choice:
    """Takes tokens, gives chunks. Ended once `finish` is set, by the engine or by the text."""

    def __init__(
        self,
        index: int,
        speech: Speech,
        reading: Reading,
        *,
        stop_token_ids: Collection[int] = (),
        keeps_stop_token: bool = False,
    ) -> None:
        """`stop_token_ids`: of all that end an answer, those that are told to have done it."""
        self.finish: Finish | None = None
        self.num_tokens = 0
        self.num_reasoning = 0
        self.sum_experts = 0.0
        self.num_counted = 0
        self._index = index
        self._speech = speech
        self._reading = reading
        self._stop_token_ids = frozenset(stop_token_ids)
        self._keeps_stop_token = keeps_stop_token
        self._stop: str | int | None = None
        self._passage = Passage()
        self._tokens: list[Token] = []

    def push(self, token: Token) -> bool:
        """Take one more token of the answer; return whether its text ends it there."""
        self._count(token)
        self._take(self._speech.push(token))
        self.num_reasoning += self._reading.is_reasoning
        if self._speech.stop is None and not self._reading.is_over:
            return False
        self._end("stop")
        return True

    def end(self, finish: Finish, stop_token: Token | None = None) -> None:
        """End the answer; the token that ended it is counted, and mostly no part of the text."""
        if stop_token is not None:
            self._count(stop_token)
            if stop_token.token_id in self._stop_token_ids:
                self._stop = stop_token.token_id
            if self._keeps_stop_token:
                self._take(self._speech.push(stop_token))
        self._take(self._speech.finish())
        # A character that was cut in half becomes U+FFFD, which may be one.
        self._end("stop" if self._speech.stop is not None else finish)

    def take_chunk(self) -> Chunk | None:
        """Return what came since the last chunk, or None if that is nothing."""
        passage, tokens = self._passage, tuple(self._tokens)
        if passage.is_empty and not tokens and self.finish is None:
            return None
        self._passage, self._tokens = Passage(), []
        return Chunk(
            index=self._index,
            text=passage.content,
            reasoning=passage.reasoning,
            tool_calls=tuple(passage.tool_calls),
            tokens=tokens,
            finish=self.finish,
            stop=self._stop if self._speech.stop is None else self._speech.stop,
        )

    def _count(self, token: Token) -> None:
        self.num_tokens += 1
        if token.num_experts is not None:
            self.sum_experts += token.num_experts
            self.num_counted += 1

    def _take(self, released: Released) -> None:
        text, tokens = released
        self._reading.push(text, self._passage)
        self._tokens += tokens

    def _end(self, finish: Finish) -> None:
        self._reading.finish(self._passage)
        has_called = finish == "stop" and self._reading.num_calls > 0
        self.finish = "tool_calls" if has_called else finish
