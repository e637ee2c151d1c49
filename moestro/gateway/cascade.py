"""A small model asked first, and its answer kept if a rule says that it is good.

By its own log-probabilities: then of a stream the beginning decides, before its first byte goes on,
and who did not ask for log-probabilities does not see any. Or by its text: then a stream waits for
its end. Next: choosing.py, gateway.py.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from moestro.gateway.asked import Asked
from moestro.gateway.attempts import Outgoing
from moestro.gateway.choosing import CascadeRule
from moestro.gateway.config import GatewayConfig
from moestro.gateway.content import text_of
from moestro.gateway.events import as_count, read_data, write_event
from moestro.gateway.legs import Leg


class Sieve:
    """Collects an answer's log-probabilities, and takes out what nobody asked for."""

    def __init__(self, asked: Asked) -> None:
        self.logprobs: list[float] = []
        self._is_chat = asked.kind == "chat"
        # A number of 0 asks for the tokens' own, so only what is absent asks for nothing.
        self._is_shown = asked.look("logprobs") not in (None, False)
        self._asked = asked

    def outgoing(self, rule: CascadeRule) -> Outgoing:
        """Return the request, with log-probabilities if the rule goes by them."""
        if rule.reads_whole:
            return Outgoing(asked=self._asked)
        changes: dict[str, Any] = {}
        if not self._is_shown:
            changes["logprobs"] = True if self._is_chat else 1
        return Outgoing(asked=self._asked, changes=changes, join=self.join)

    def join(self, event: bytes) -> bytes:
        """Take an event of a stream; return it as it goes on."""
        data = read_data(event)
        if not data or data == b"[DONE]":
            return event
        said: Any = msgspec.json.decode(data)
        has_any = self._collect(said)
        return write_event(said) if has_any and not self._is_shown else event

    def whole(self, body: bytes) -> bytes:
        """Take a whole answer; return it as it goes on."""
        said: Any = msgspec.json.decode(body)
        has_any = self._collect(said)
        return msgspec.json.encode(said) if has_any and not self._is_shown else body

    def _collect(self, said: Any) -> bool:  # noqa: ANN401 (whatever JSON can say)
        """Take what an object says out of it; tell whether there was any."""
        has_any = False
        choices = said.get("choices") if isinstance(said, dict) else None
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                continue
            found = choice.get("logprobs")
            has_any = has_any or "logprobs" in choice
            self.logprobs += _read(found)
            if not self._is_shown:
                choice.pop("logprobs", None)
        return has_any


async def is_good(leg: Leg, sieve: Sieve, rule: CascadeRule, config: GatewayConfig) -> bool:
    """Tell whether an answer is kept; its first events are read as far as that needs.

    A Fault where its backend breaks off before.
    """
    if rule.reads_whole:
        return await _is_good_text(leg, rule, config.max_answer_bytes)
    if leg.events is None:
        leg.body = sieve.whole(leg.body)
    while leg.events is not None and len(sieve.logprobs) < config.cascade_tokens:
        more = await leg.events.next()
        if not more:
            break
        leg.body += more
    # Without any there is nothing that speaks for it.
    return bool(sieve.logprobs) and rule.accepts("", sieve.logprobs)


def count_written(leg: Leg, sieve: Sieve) -> int:
    """Return how many tokens an answer has, as far as it was read or says so."""
    usage = leg.piece.usage if leg.piece is not None else None
    stated = as_count(usage.completion_tokens) if usage is not None else None
    told = leg.events.told.num_tokens if leg.events is not None else 0
    return max(len(sieve.logprobs), stated or 0, told)


async def _is_good_text(leg: Leg, rule: CascadeRule, most_bytes: int) -> bool:
    if leg.events is None:
        return rule.accepts(text_of(leg.body), ())
    while more := await leg.events.next():
        leg.body += more
        if len(leg.body) > most_bytes:
            return False
    return rule.accepts(leg.events.told.text, ())


class _Entry(msgspec.Struct):
    logprob: float


class _LogProbs(msgspec.Struct):
    """Of a completion, a number a token, null for the first; of a chat, an entry a token."""

    token_logprobs: list[float | None] | None = None
    content: list[_Entry] | None = None


def _read(found: Any) -> Sequence[float]:  # noqa: ANN401 (whatever JSON can say)
    try:
        said = msgspec.convert(found, _LogProbs | None)
    except msgspec.ValidationError:
        # What says nothing that can be read speaks for nothing.
        return ()
    if said is None:
        return ()
    entries = [entry.logprob for entry in said.content or ()]
    return [value for value in said.token_logprobs or entries if value is not None]
