"""Asking a model's backends until one answers: the first byte of an answer, or the last fault.

Another one is asked only where that is safe: nobody has seen a byte of an answer, and asking twice
leaves nothing behind. Next: legs.py, failover.py.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from moestro.errors import BackendError, CapacityError, ConfigError
from moestro.gateway.asked import Asked
from moestro.gateway.config import GatewayConfig
from moestro.gateway.events import Piece
from moestro.gateway.faults import Fault
from moestro.gateway.legs import (
    Events,
    Incoming,
    Leg,
    check_refusal,
    check_status,
)
from moestro.gateway.messages import MessagesTold
from moestro.gateway.model_name import is_same_model
from moestro.gateway.queue import Line, Member
from moestro.gateway.told import Told
from moestro.gateway.trace import Trace
from moestro.gateway.upstream import Upstream
from moestro.gateway.wholes import read_whole

log = logging.getLogger(__name__)


class Sender(Protocol):
    """Sends a request to a backend in the words that it speaks."""

    def check(self, upstream: Upstream, outgoing: "Outgoing") -> None:
        """Raise ConfigError if it has no words for what is asked."""

    async def send(self, upstream: Upstream, outgoing: "Outgoing") -> Incoming:
        """Return the head of its answer, in OpenAI's words."""


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """What is sent to whichever backend answers: the client's request with some fields changed.

    Of a stream that goes on, `told` has what came before, and `join` changes what comes; a stream
    that begins has neither. `barred` are backends that cannot do it. `headers` are for one try.
    """

    asked: Asked
    changes: Mapping[str, Any] = field(default_factory=dict)
    told: Told | None = None
    join: Callable[[bytes], bytes] | None = None
    barred: Collection[str] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    def body_for(self, model: str) -> bytes:
        """Return the body, with the model's name at a backend."""
        if not self.changes:
            return self.asked.body_for(model)
        return self.asked.body_with({**self.changes, "model": model})


@dataclass(frozen=True, slots=True)
class _Tried:
    """Backends that were asked for an answer already, and those that cannot give it."""

    seen: set[str]
    barred: set[str]

    def is_over(self, line: Line) -> bool:
        """Whether nobody is left to ask."""
        return all(member.name in self.barred for member in line.members)


class Attempts:
    """Asks backends, one after the other, or a second one beside a slow first."""

    def __init__(
        self,
        lines: Mapping[str, Line],
        sender: Sender,
        config: GatewayConfig,
        *,
        on_lie: Callable[[str], None] = lambda backend: None,
        chance: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`on_lie` is told of a backend that answers for another model than it was asked for."""
        self._lines = lines
        self._sender = sender
        self._config = config
        self._on_lie = on_lie
        self._chance = chance or random.Random()
        self._sleep = sleep

    async def open(
        self, model: str, outgoing: Outgoing, trace: Trace, tried: Collection[str] = ()
    ) -> Leg:
        """Return an answer's beginning; backends in `tried` are asked last.

        BackendError where none answered, CapacityError where they have no place, ConfigError where
        none has words for what is asked: then nobody is asked.
        """
        line = self._lines[model]
        its = _Tried(set(tried), self._find_mute(line, outgoing))
        last: Fault | None = None
        for number in range(self._config.retries + 1):
            if last is not None:
                await self._pause(line, its, number, last)
            try:
                return await self._hedge(line, outgoing, trace, its)
            except Fault as fault:
                last = fault
                log.warning("request %s: %s", trace.call.request_id, fault)
                if fault.has_begun and not outgoing.asked.is_repeatable:
                    break
            except (BackendError, CapacityError):
                if last is None:
                    raise
                break
        assert last is not None
        raise _final(last, line)

    def _find_mute(self, line: Line, outgoing: Outgoing) -> set[str]:
        """Return those that cannot do it; ConfigError if all of them have no words for it."""
        barred = set(outgoing.barred)
        mistake: ConfigError | None = None
        for member in line.members:
            try:
                self._sender.check(member.upstream, outgoing)
            except ConfigError as error:
                mistake = mistake or error
                barred.add(member.name)
        if mistake is not None and len(barred) == len(line.members):
            raise mistake
        return barred

    async def _pause(self, line: Line, its: _Tried, number: int, last: Fault) -> None:
        if its.is_over(line):
            raise _final(last, line)
        known = its.seen | its.barred
        if any(each.name not in known and each.health.may_ask() for each in line.members):
            return
        backoff_s = self._config.backoff_s * 2 ** (number - 1)
        wait_s = min(self._config.max_backoff_s, backoff_s * self._chance.random())
        rest_s = last.retry_after_s or 0.0
        if rest_s > self._config.max_backoff_s:
            raise _final(last, line)
        await self._sleep(max(wait_s, rest_s))

    async def _hedge(self, line: Line, outgoing: Outgoing, trace: Trace, its: _Tried) -> Leg:
        after_s = self._config.hedge_after_s
        may_hedge = outgoing.asked.is_repeatable and outgoing.told is None
        if after_s is None or not may_hedge or len(line.members) < 2:
            return await self._try(line, outgoing, trace, its)
        placed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        first = asyncio.ensure_future(self._try(line, outgoing, trace, its, placed))
        try:
            # Only a backend can be slow: who waits for a place would wait for two.
            await asyncio.wait((first, placed), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait((first,), timeout=after_s)
        except asyncio.CancelledError:
            _drop(first)
            raise
        if first.done():
            return first.result()
        second = asyncio.ensure_future(self._try_spare(line, outgoing, trace, its))
        return await _race(first, second)

    async def _try(
        self,
        line: Line,
        outgoing: Outgoing,
        trace: Trace,
        its: _Tried,
        placed: "asyncio.Future[None] | None" = None,
    ) -> Leg:
        member = await line.enter(trace.call.caller, tuple(its.seen), tuple(its.barred))
        if placed is not None:
            placed.set_result(None)
        return await self._ask(member, line, outgoing, trace, its)

    async def _try_spare(self, line: Line, outgoing: Outgoing, trace: Trace, its: _Tried) -> Leg:
        """Ask one that was not asked yet, if it has nothing better to do."""
        member = line.enter_spare(its.seen | its.barred)
        return await self._ask(member, line, outgoing, trace, its)

    async def _ask(
        self, member: Member, line: Line, outgoing: Outgoing, trace: Trace, its: _Tried
    ) -> Leg:
        its.seen.add(member.name)
        trace.num_attempts += 1
        span = None if trace.span is None else trace.span.attempt(member.upstream)
        if span is not None:
            outgoing = replace(outgoing, headers=span.headers)
        leg = None
        try:
            incoming = await self._sender.send(member.upstream, outgoing)
            leg = Leg(member=member, line=line, incoming=incoming, span=span)
            await self._begin(leg, outgoing)
        except BaseException as error:
            if isinstance(error, Fault):
                member.health.note_fault(error)
                if error.is_of_request:
                    its.barred.add(member.name)
            else:
                member.health.note_left()
            if leg is not None:
                leg.close(error)
            else:
                line.leave(member)
                if span is not None:
                    span.end(None, error)
            raise
        return leg

    async def _begin(self, leg: Leg, outgoing: Outgoing) -> None:
        name, incoming = leg.member.name, leg.incoming
        if not check_status(incoming, name):
            leg.body = await incoming.read_whole(self._config.max_answer_bytes)
            check_refusal(leg.status, leg.body, name)
            return
        if not outgoing.asked.is_stream:
            leg.body = await incoming.read_whole(self._config.max_answer_bytes)
            leg.piece = read_whole(outgoing.asked.kind, leg.body, name)
            self._check_model(leg, leg.piece)
            return
        if not incoming.is_stream:
            raise Fault("garbage", f"{name} answered with something else than a stream")
        # Of its own, unless it goes on: what a try that failed was told must be forgotten.
        told = outgoing.told or _new_told(outgoing.asked)
        leg.events = Events(incoming, name, told, outgoing.join)
        leg.body = await leg.events.first()
        if outgoing.join is None:
            self._check_model(leg, told.head)

    def _check_model(self, leg: Leg, piece: Piece | None) -> None:
        upstream = leg.member.upstream
        if piece is None or is_same_model(piece.model, upstream.model):
            return
        self._on_lie(upstream.name)
        message = f"{upstream.name} answers for another model than it was asked for"
        if upstream.config.checks_model:
            raise Fault("model", message)
        leg.member.health.trouble = message


def _new_told(asked: Asked) -> Told:
    return MessagesTold() if asked.kind == "messages" else Told(asked.num_choices)


async def _race(first: "asyncio.Task[Leg]", second: "asyncio.Task[Leg]") -> Leg:
    """Return the answer that begins first, and end the other; the last fault if neither does."""
    running = {first, second}
    try:
        while running:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            good = [task for task in done if task.exception() is None]
            if good:
                running |= set(good[1:])
                return good[0].result()
        return first.result()
    finally:
        for task in running:
            _drop(task)


def _drop(task: "asyncio.Task[Leg]") -> None:
    """End a try, and its answer if it has one already.

    Nobody waits for that: who left meanwhile would leave the answer that won open behind him.
    """
    task.cancel()
    task.add_done_callback(_close)


def _close(task: "asyncio.Task[Leg]") -> None:
    with suppress(BackendError, CapacityError, asyncio.CancelledError):
        task.result().close_well()


def _final(fault: Fault, line: Line) -> BackendError | CapacityError:
    if fault.kind not in ("busy", "unready"):
        return fault
    wait_s = fault.retry_after_s or line.wait_s() or 1.0
    if fault.kind == "busy":
        return CapacityError(f"{fault}: try again in {wait_s:g} s", wait_s)
    what = f"model {line.model} is loading" if line.state == "loading" else str(fault)
    return BackendError(f"{what}: try again in {wait_s:g} s", wait_s)
