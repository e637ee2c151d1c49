"""Which model answers a conversation, for all workers of a host: a table in their shared file.

A conversation has a few places that it may stand in; the one forgotten soonest makes room. A model
with a very long name is not remembered. Knows no policy. Next: shared.py.
"""

import hashlib
import struct
import time
from collections.abc import Callable

from moestro.records.shared import CONVERSATION_CELLS, SharedFile

_PLACES = 4
_ROW = struct.Struct("=16sdB39s")
_LONGEST_NAME = 39
assert _ROW.size == CONVERSATION_CELLS * 8


class SharedConversations:
    """Conversations by their hash, each for `keep_s` after its last turn."""

    def __init__(
        self, file: SharedFile, keep_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lock = file.lock
        self._rows = file.conversations()
        self._num_rows = file.num_conversations
        self._keep_s = keep_s
        self._clock = clock

    def find(self, conversation: str) -> str | None:
        """Return its model, None if it is new or too long ago."""
        digest = _digest(conversation)
        with self._lock:
            rows = [_ROW.unpack_from(self._rows, place) for place in self._places(digest)]
        for known, until, length, name in rows:
            if known == digest and self._clock() < until:
                found: str = name[:length].decode()
                return found
        return None

    def keep(self, conversation: str, model: str) -> None:
        """Remember its model from now on."""
        name = model.encode()
        if len(name) > _LONGEST_NAME:
            return
        digest = _digest(conversation)
        until = self._clock() + self._keep_s
        with self._lock:
            place = self._choose(digest)
            _ROW.pack_into(self._rows, place, digest, until, len(name), name)

    def _choose(self, digest: bytes) -> int:
        places = self._places(digest)
        rows = [_ROW.unpack_from(self._rows, place) for place in places]
        for place, row in zip(places, rows, strict=True):
            if row[0] == digest:
                return place
        return min(zip(places, rows, strict=True), key=lambda pair: pair[1][1])[0]

    def _places(self, digest: bytes) -> list[int]:
        first = int.from_bytes(digest[:8], "little")
        return [(first + step) % self._num_rows * _ROW.size for step in range(_PLACES)]


def _digest(conversation: str) -> bytes:
    return hashlib.blake2b(conversation.encode(), digest_size=16).digest()
