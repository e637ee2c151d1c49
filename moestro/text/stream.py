"""Token ids in, printable text out: whole characters only, and nothing from a stop string on.

What comes out never depends on where the borders between tokens lie. Knows no model. Next: lm.
"""

import codecs
from collections.abc import Sequence

from moestro.errors import ConfigError
from moestro.text.tokenizer import Tokenizer


class TextStream:
    """One answer as it grows. `stop` is the stop string that ended it, or None."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        *,
        continues: bool = True,
        kept: Sequence[str] = (),
    ) -> None:
        """Start an answer; most go on from a prompt: `continues` as in `Tokenizer.decode`.

        A stop string that is among `kept`, too, is the answer's last text.
        """
        if "" in stops:
            raise ConfigError(
                "a stop string is empty: give at least one character, or no stop string"
            )
        self.stop: str | None = None
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._kept = frozenset(kept)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._drops_space = tokenizer.pieces.has_lead_space and not continues

    def push(self, token_id: int) -> str:
        """Take one more token; return the text that is certain now, often none."""
        return self.push_bytes(self._tokenizer.token_bytes(token_id))

    def push_bytes(self, data: bytes) -> str:
        """Take one more token as the bytes that it stands for."""
        if self._drops_space and data:
            data, self._drops_space = data.removeprefix(b" "), False
        return self._advance(self._decoder.decode(data))

    def finish(self) -> str:
        """Return what was held back; a character cut in half becomes U+FFFD."""
        text = self._advance(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _advance(self, text: str) -> str:
        if self.stop is not None:
            return ""
        self._held += text
        found = _first_stop(self._held, self._stops)
        if found is not None:
            start, self.stop = found
            end = start + len(self.stop) if self.stop in self._kept else start
            text, self._held = self._held[:end], ""
            return text
        keep = _possible_start(self._held, self._stops)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def _first_stop(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    # The one that ends first, so that more text at a time cannot change which one it is.
    starts = ((text.find(stop), stop) for stop in stops)
    found = [(start + len(stop), start, stop) for start, stop in starts if start >= 0]
    return min(found)[1:] if found else None


def _possible_start(text: str, stops: Sequence[str]) -> int:
    longest = max(map(len, stops), default=1) - 1
    sizes = range(min(longest, len(text)), 0, -1)
    return next(
        (size for size in sizes if any(stop.startswith(text[-size:]) for stop in stops)),
        0,
    )
