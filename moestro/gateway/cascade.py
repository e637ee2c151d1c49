"""A small model asked first, and its answer kept if its own log-probabilities say that it is good.

Of a stream the beginning decides, before its first byte goes on. Who did not ask for
log-probabilities does not see any. Next: choosing.py, gateway.py.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from moestro.gateway.asked import Asked
from moestro.gateway.attempts import Outgoing
from moestro.gateway.choosing import CascadeRule
from moestro.gateway.events import read_data, write_event
from moestro.gateway.faults import Fault
from moestro.gateway.legs import Leg


class Sieve:
    """Collects an answer's log-probabilities, and takes out what nobody asked for."""

    def __init__(self, asked: Asked) -> None:
        self.logprobs: list[float] = []
        self._is_chat = asked.kind == "chat"
        # A number of 0 asks for the tokens' own, so only what is absent asks for nothing.
        self._is_shown = asked.look("logprobs") not in (None, False)
        self._asked = asked

    def outgoing(self) -> Outgoing:
        """Return the request with log-probabilities."""
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
        for choice in choices or ():
            found = choice.get("logprobs")
            has_any = has_any or "logprobs" in choice
            self.logprobs += _read(found)
            if not self._is_shown:
                choice.pop("logprobs", None)
        return has_any


def may_cascade(asked: Asked) -> bool:
    """Tell whether one answer's tokens speak for all of it."""
    is_single = asked.number("n") in (None, 1)
    return is_single and asked.kind != "messages" and not asked.has("echo")


async def is_good(leg: Leg, sieve: Sieve, rule: CascadeRule, num_tokens: int) -> bool:
    """Tell whether an answer is kept; its first events are read as far as that needs."""
    if leg.status != 200:
        return True
    if leg.events is None:
        leg.body = sieve.whole(leg.body)
    try:
        while leg.events is not None and len(sieve.logprobs) < num_tokens:
            more = await leg.events.next()
            if not more:
                break
            leg.body += more
    except Fault as fault:
        leg.member.health.note_fault(fault)
        return False
    # Without any there is nothing that speaks for it.
    return bool(sieve.logprobs) and rule.accepts(sieve.logprobs)


def _read(found: Any) -> Sequence[float]:  # noqa: ANN401 (whatever JSON can say)
    if not isinstance(found, dict):
        return ()
    values = found.get("token_logprobs")
    if values is None:
        values = [entry.get("logprob") for entry in found.get("content") or ()]
    return [float(value) for value in values if isinstance(value, int | float)]
