"""A stream that ends whole whatever becomes of its backend: READ AFTER gateway.py.

While all is well, bytes go on as they came. When a backend breaks off, falls silent, ends too early
or sends what is none, another one of the same model goes on behind the text so far. Where that
cannot be right the stream ends with an error event. Next: legs.py, continuing.py.
"""

import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field

from moestro.api.record import Outcome
from moestro.errors import BackendError, CapacityError, ConfigError
from moestro.gateway.asked import Asked
from moestro.gateway.attempts import Attempts, Outgoing
from moestro.gateway.choosing import ModelChoice
from moestro.gateway.config import GatewayConfig
from moestro.gateway.continuing import Graft, changes_to_continue, is_spent, last_event
from moestro.gateway.events import DONE, write_event
from moestro.gateway.faults import Fault
from moestro.gateway.fleet import Price
from moestro.gateway.legs import Leg
from moestro.gateway.messages import MessagesTold
from moestro.gateway.messages_continuing import (
    MessageGraft,
    changes_to_continue_message,
    last_message_events,
    write_named,
)
from moestro.gateway.queue import Line
from moestro.gateway.told import Told
from moestro.gateway.trace import Trace

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamPart:
    """So many tokens that a backend wrote of a stream, behind so many of others before it."""

    model: str
    num_before: int
    num_tokens: int


_CONTINUED = b": moestro continued by %s\n\n"


@dataclass(kw_only=True)
class StreamOut:
    """One stream on its way to a client; `lines` are those of all models, by name."""

    asked: Asked
    choice: ModelChoice
    outgoing: Outgoing
    leg: Leg
    trace: Trace
    attempts: Attempts
    lines: Mapping[str, Line]
    config: GatewayConfig
    on_end: Callable[["StreamOut", Outcome], None]
    on_failover: Callable[[str], None]
    error: str | None = None
    broken: set[str] = field(default_factory=set)
    earlier: list[StreamPart] = field(default_factory=list)

    @property
    def told(self) -> Told:
        """What the client has been told."""
        assert self.leg.events is not None
        return self.leg.events.told

    def earlier_usd(self, prices: Mapping[str, Price]) -> float:
        """Return what a stream of several parts cost more than one of the last model alone.

        Each who went on read all that was there before, and has a price of its own.
        """
        if not self.earlier:
            return 0.0
        usage = self.told.whole_usage
        stated = None if usage is None else usage.prompt_tokens
        num_prompt = self.asked.estimated_tokens if stated is None else stated
        last, num = prices[self.trace.model], sum(part.num_tokens for part in self.earlier)
        own_usd = sum(
            prices[part.model].cost_usd(num_prompt + part.num_before, part.num_tokens)
            for part in self.earlier
        )
        return own_usd + last.cost_usd(num, 0) - last.cost_usd(0, num)

    async def relay(self) -> AsyncGenerator[bytes, None]:
        """Yield nothing once, then the stream; closing it ends the backend's work at once.

        Whoever makes it takes the first piece: a generator that never began cannot end anything.
        """
        outcome: Outcome = "left"
        tape = self.trace.tape
        try:
            yield b""
            if tape is not None:
                tape.add(self.leg.body)
            yield self.leg.body
            async for block in self._follow():
                if tape is not None:
                    tape.add(block)
                yield block
            outcome = "answered" if self.error is None else "failed"
        finally:
            self.leg.close()
            self.on_end(self, outcome)

    async def _follow(self) -> AsyncGenerator[bytes, None]:
        told = self.told
        while True:
            assert self.leg.events is not None
            try:
                while block := await self.leg.events.next():
                    yield block
                break
            except Fault as fault:
                log.warning("request %s, in mid-stream: %s", self.trace.call.request_id, fault)
                self.leg.member.health.note_fault(fault)
                self.leg.close(fault)
                cause = fault
            if told.is_visible and is_spent(self.asked, told.num_tokens):
                yield (
                    last_message_events(told)
                    if isinstance(told, MessagesTold)
                    else last_event(told, self.asked)
                )
                break
            joined = await self._go_on(cause)
            if joined is None:
                yield self._error_event(cause)
                return
            yield joined
        if not told.has_ended:
            yield self._ending()

    async def _go_on(self, cause: Fault) -> bytes | None:
        """Return the first events of whoever goes on; None where nobody can."""
        trace = self.trace
        num_before = sum(part.num_tokens for part in self.earlier)
        num_tokens = self.told.num_tokens - num_before if self.told.is_visible else 0
        part = StreamPart(model=trace.model, num_before=num_before, num_tokens=num_tokens)
        for model in self._heirs():
            broken = self.leg.member
            self.broken.add(broken.name)
            is_other = model != trace.model
            outgoing = self._continue(model if is_other else None, model)
            try:
                leg = await self.attempts.open(model, outgoing, trace, self.broken)
            except (BackendError, CapacityError, ConfigError) as error:
                log.warning("request %s goes not on at %s: %s", trace.call.request_id, model, error)
                continue
            if leg.status != 200:
                leg.close_well()
                continue
            self.leg = leg
            self.outgoing = outgoing
            leg.member.health.note_success()
            broken.health.note_failover()
            trace.num_failovers += 1
            trace.model, trace.member = model, leg.member
            self.on_failover(broken.name)
            if part.num_tokens:
                self.earlier.append(part)
            declared = _CONTINUED % ascii(model)[1:-1].encode() if is_other else b""
            return declared + leg.body
        log.warning("request %s is lost: %s", trace.call.request_id, cause)
        return None

    def _heirs(self) -> list[str]:
        """Return the models that may go on: the same one, others only where it is right."""
        told = self.told
        if not self.asked.is_repeatable or self.trace.num_failovers >= self.config.continuations:
            return []
        others = [name for name in self.choice.models if name != self.trace.model]
        if not told.is_visible:
            return [self.trace.model, *others]
        if not told.may_continue(self.asked):
            return []
        return [self.trace.model, *(others if self.config.continues_across_models else [])]

    def _continue(self, shown: str | None, model: str) -> Outgoing:
        told = self.told
        changes = dict(self.outgoing.changes)
        barred: list[str] = []
        is_messages = isinstance(told, MessagesTold)
        if told.is_visible:
            change = changes_to_continue_message if is_messages else changes_to_continue
            changes |= change(self.asked, told.text, told.num_tokens)
            barred = [
                member.name
                for member in self.lines[model].members
                if not member.upstream.config.can_continue
            ]
        graft = MessageGraft(told) if isinstance(told, MessagesTold) else Graft(told, shown)
        return Outgoing(
            asked=self.asked, changes=changes, told=told, join=graft.join, barred=barred
        )

    def _error_event(self, cause: Fault) -> bytes:
        message = f"the answer broke off, and nobody could go on with it: {cause}"
        self.error = str(cause)
        if self.asked.kind == "messages":
            said = {"type": "error", "error": {"type": "api_error", "message": message}}
            return write_named(said)
        error = {"message": message, "type": "server_error", "param": None, "code": "unavailable"}
        return write_event({"error": error})

    def _ending(self) -> bytes:
        if self.asked.kind == "messages":
            return write_named({"type": "message_stop"})
        return DONE
