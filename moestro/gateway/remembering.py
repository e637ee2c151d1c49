"""Answers given again without asking a backend, and which answers are worth to be kept.

Only one that came whole, from one backend of the model that the question was put to, is kept.
Knows no database and not which questions may be asked twice. Next: tape.py, cli/bookkeeping.py.
"""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from moestro.api.relay import Reply
from moestro.gateway.events import Usage
from moestro.gateway.tape import Tape
from moestro.gateway.trace import Trace

STREAM_HEADERS: Mapping[str, str] = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """An answer's bytes as a client got them, and the headers that belong to them."""

    body: bytes
    headers: Mapping[str, str]


class Cache(Protocol):
    """Answers by the names of their questions."""

    @property
    def max_answer_bytes(self) -> int:
        """Longer answers are not kept."""

    def name(
        self, path: str, body: Mapping[str, Any], model: str, caller: str | None
    ) -> str | None:
        """Return the name of a question, None where its answer must not be given twice."""

    async def find(self, name: str) -> Kept | None:
        """Return the answer to a question of this name; its headers say that it was kept."""

    def keep(self, name: str, kept: Kept) -> None:
        """Keep an answer; must return at once and must not raise."""


class Memory:
    """Finds and keeps answers; without a cache it does neither."""

    def __init__(self, cache: Cache | None) -> None:
        self._cache = cache

    async def find(self, trace: Trace) -> Kept | None:
        """Return the answer that the model chosen gave before; else begin to write this one down.

        The request is then one that cost nothing: whoever gets it calls `repeat`.
        """
        cache, asked, choice = self._cache, trace.asked, trace.choice
        if cache is None or asked is None or choice is None or not asked.is_repeatable:
            return None
        model = choice.models[0]
        # What a client switches on by a header changes the answer as a field does.
        question = {**msgspec.json.decode(asked.body), **asked.headers}
        name = cache.name(asked.path, question, model, trace.call.caller)
        if name is None:
            return None
        kept = await cache.find(name)
        if kept is None:
            trace.tape = Tape(name=name, model=model, max_bytes=cache.max_answer_bytes)
            return None
        trace.model = model
        if not trace.call.is_audit:
            trace.reason = "cache"
        trace.usage = Usage(prompt_tokens=0, completion_tokens=0)
        return kept

    def keep(self, trace: Trace, headers: Mapping[str, str], body: bytes = b"") -> None:
        """Keep an answer that has gone by; `body` is the part of it that is not on its tape."""
        tape = trace.tape
        if self._cache is None or tape is None:
            return
        tape.add(body)
        # Another model's answer is none of the one that the question was put to.
        if tape.is_whole and tape.model == trace.model and not trace.num_failovers:
            kept = Kept(body=tape.body, headers={**headers, **trace.experts_header()})
            self._cache.keep(tape.name, kept)


def repeat(trace: Trace, kept: Kept) -> Reply:
    """Return an answer again: whole, or as a stream of the same bytes."""
    assert trace.asked is not None
    headers = {**trace.headers("application/json"), **kept.headers}
    body = _replay(kept.body) if trace.asked.is_stream else kept.body
    return Reply(status=200, headers=headers, body=body, spent=trace.spent)


async def _replay(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
