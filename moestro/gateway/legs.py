"""One backend's part of an answer: its whole body checked, or its events, whole ones only.

Next: attempts.py, failover.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from moestro.gateway.events import Cutter, Garbage, Piece, split
from moestro.gateway.faults import Fault
from moestro.gateway.queue import Line, Member
from moestro.gateway.spans import Attempt
from moestro.gateway.told import BrokenAnswer, Told

_MOST_HELD_BYTES = 64 * 1024
_BUSY_S = 1.0


class _Error(msgspec.Struct):
    metadata: dict[str, Any] = {}


class _Refusal(msgspec.Struct):
    error: _Error


_read_refusal = msgspec.json.Decoder(_Refusal).decode


class Incoming(Protocol):
    """An answer as it comes in, in OpenAI's words."""

    @property
    def status(self) -> int:
        """Its HTTP status."""

    @property
    def is_stream(self) -> bool:
        """Whether events come."""

    @property
    def content_type(self) -> str:
        """What its body is said to be."""

    @property
    def retry_after_s(self) -> float | None:
        """When the backend wants to be asked again."""

    @property
    def experts(self) -> float | None:
        """How many experts per token the backend granted, None where it does not say."""

    async def read(self) -> bytes:
        """Return the next bytes; none at the end."""

    async def read_whole(self, most_bytes: int) -> bytes:
        """Return all of them."""

    def close(self) -> None:
        """End it."""


@dataclass(slots=True, kw_only=True)
class Leg:
    """What one backend answers, and the place at it: all of it, or a stream's first events."""

    member: Member
    line: Line
    incoming: Incoming
    body: bytes = b""
    piece: Piece | None = None
    events: "Events | None" = None
    span: Attempt | None = None
    is_closed: bool = False

    @property
    def status(self) -> int:
        """Its HTTP status."""
        return self.incoming.status

    def close(self, error: BaseException | None = None) -> None:
        """End it, and give the place back; does nothing the second time."""
        if not self.is_closed:
            self.is_closed = True
            self.incoming.close()
            self.line.leave(self.member)
            if self.span is not None:
                self.span.end(self.status, error)

    def close_well(self) -> None:
        """End it where it shows its backend to be well, though nobody gets it."""
        self.close()
        self.member.health.note_success()


class Events:
    """The events of one backend's stream, each taken into what has been told before it goes on."""

    def __init__(
        self,
        incoming: Incoming,
        name: str,
        told: Told,
        join: Callable[[bytes], bytes] | None = None,
    ) -> None:
        """`join` changes each event before it goes on."""
        self.told = told
        self._incoming = incoming
        self._name = name
        self._join = join
        self._cutter = Cutter()
        self._fault: Fault | None = None

    async def first(self) -> bytes:
        """Return the events up to the first that says something; a Fault if none does."""
        held = await self.next()
        while self.told.head is None and not self.told.is_whole and len(held) < _MOST_HELD_BYTES:
            more = await self.next()
            if not more:
                break
            held += more
        return held

    async def next(self) -> bytes:
        """Return the next events as soon as one is whole; none at the answer's good end.

        A Fault where the backend breaks off, says that it failed, or sends what is no event; what
        came well before that has been returned.
        """
        try:
            return await self._read_on()
        except Fault:
            if self.told.is_whole:
                # What fails behind the end takes nothing away from the answer.
                return b""
            raise

    async def _read_on(self) -> bytes:
        if self._fault is not None:
            raise self._fault
        while not self.told.has_ended:
            data = await self._incoming.read()
            if not data:
                self._check_end()
                return b""
            block = self._take(data)
            if block:
                return block
        return b""

    def _take(self, data: bytes) -> bytes:
        try:
            block = self._cutter.feed(data)
        except Garbage as error:
            raise self._garbage(error) from error
        if not block:
            return b""
        events = split(block) if block.count(b"\n\n") != 1 or b"\r" in block else [block]
        taken = []
        for event in events:
            try:
                self.told.add(event)
            except Garbage as error:
                self._fault = self._garbage(error)
                break
            taken.append(event if self._join is None else self._join(event))
        if self._fault is None and self._join is None:
            return block
        if self._fault is not None and not any(taken):
            raise self._fault
        return b"".join(taken)

    def _check_end(self) -> None:
        if not self.told.is_whole:
            raise Fault("broken", f"{self._name} ended its answer too early")

    def _garbage(self, error: Garbage) -> Fault:
        kind = "status" if isinstance(error, BrokenAnswer) else "garbage"
        what = "failed in the middle" if kind == "status" else "sent what is no event"
        return Fault("status" if kind == "status" else "garbage", f"{self._name} {what}")


def check_status(incoming: Incoming, name: str) -> bool:
    """Tell whether an answer is one; False of a refusal for its sender to hear; else a Fault."""
    status = incoming.status
    if status == 200:
        return True
    wait_s = incoming.retry_after_s
    if status == 429 or (status == 529 and wait_s is not None):
        raise Fault("busy", f"{name} is asked too much", retry_after_s=wait_s, has_begun=False)
    if status == 503 and wait_s is not None:
        # As ours says while its model loads.
        raise Fault("unready", f"{name} is not ready", retry_after_s=wait_s, has_begun=False)
    if status in (401, 407):
        raise Fault("denied", f"{name} does not accept our key", has_begun=False)
    if status == 402:
        # The operator's bill, and not who asks is to pay it.
        raise Fault("denied", f"{name} wants to be paid first", has_begun=False)
    if status in (404, 405, 501):
        raise Fault("absent", f"{name} does not know the model or the path", has_begun=False)
    if 300 <= status < 400:
        raise Fault("redirect", f"{name} sends elsewhere, and redirects are not followed")
    if 400 <= status < 500 and status not in (408, 425):
        return False
    raise Fault("status", f"{name} answered with status {status}")


def check_refusal(status: int, body: bytes, name: str) -> None:
    """Raise a Fault for a refusal that is not for its sender to hear.

    A 403 is about our key, unless it says what it has against the text: as OpenRouter does.
    """
    if status == 403 and not _is_moderation(body):
        raise Fault("forbidden", f"{name} does not allow this with our key", has_begun=False)


def _is_moderation(body: bytes) -> bool:
    try:
        said = _read_refusal(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return "flagged_input" in said.error.metadata or "reasons" in said.error.metadata
