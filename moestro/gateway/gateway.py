"""One request to the right model, and its answer back: READ FIRST.

A call is read as far as a decision needs it, a model is chosen, a backend of it answers, and bytes
go on as they come. Next: asked.py, choosing.py, turns.py, failover.py.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from moestro.api.fleet_view import FleetView
from moestro.api.record import AUDIT, OnFinished, Outcome
from moestro.api.relay import Call, Reply
from moestro.errors import MoestroError
from moestro.gateway.asked import KINDS, read_call
from moestro.gateway.attempts import Attempts, Outgoing, Sender
from moestro.gateway.books import Books, Door, Finished, status_of
from moestro.gateway.choosing import Chooser, ModelChoice, Permits, Policy, Trust
from moestro.gateway.content import count_answer_tokens, text_of
from moestro.gateway.events import as_count
from moestro.gateway.failover import StreamOut
from moestro.gateway.fleet import Fleet, FleetModel
from moestro.gateway.health import Health
from moestro.gateway.legs import Leg
from moestro.gateway.metrics import GatewayMetrics
from moestro.gateway.probe import Probes
from moestro.gateway.queue import Line, Member
from moestro.gateway.refused import pass_refusal
from moestro.gateway.remembering import STREAM_HEADERS, Cache, Memory, repeat
from moestro.gateway.shared import Alone, Conversations, RecentConversations, Shared
from moestro.gateway.spans import Tracing
from moestro.gateway.speaking import WireSender
from moestro.gateway.tally import Tally
from moestro.gateway.trace import Trace, outcome_of
from moestro.gateway.translatable import is_translatable
from moestro.gateway.turns import Turns
from moestro.gateway.upstream import Connections, build_upstream


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a gateway has around it; left out, it is one worker on its own.

    `listeners` get each request's record, `after` each new answer with its text; `door` lets
    requests in and keeps what became of them. `shared` and `conversations` are what several workers
    have in common. `cache` keeps answers, `trust` tells whether a policy's promise holds, `permits`
    what callers may ask; `tracing` is told of each step.
    """

    listeners: Sequence[OnFinished] = ()
    after: Sequence[Callable[[Finished], None]] = ()
    door: Door | None = None
    shared: Shared | None = None
    conversations: Conversations | None = None
    cache: Cache | None = None
    trust: Trust | None = None
    permits: Permits | None = None
    metrics: GatewayMetrics | None = None
    tracing: Tracing | None = None
    chance: random.Random | None = None


class Gateway:
    """Relays calls to a fleet's models."""

    def __init__(
        self, fleet: Fleet, policy: Policy | None = None, around: Surroundings | None = None
    ) -> None:
        around = around or Surroundings()
        fleet.check_keys()
        self.fleet = fleet
        config = fleet.gateway
        shared = around.shared or Alone()
        self._prices = {model.name: model.price for model in fleet.models}
        self._lines = {
            model.name: _build_line(fleet, model, shared, around.chance) for model in fleet.models
        }
        self._chooser = Chooser(
            fleet,
            policy,
            around.conversations or RecentConversations(config.sticky_s, time.monotonic),
            is_up=self._is_up,
            trust=around.trust,
            permits=around.permits,
        )
        self._metrics = around.metrics or GatewayMetrics()
        self._tally = Tally(fleet, self._lines, self._chooser, shared)
        self._books = Books(
            self._prices,
            self._chooser,
            listeners=(self._tally.add, self._metrics.add, *around.listeners),
            door=around.door,
            after=around.after,
        )
        self._memory = Memory(around.cache)
        self._tracing = around.tracing
        self._chance = around.chance
        self._connections: Connections | None = None
        self._attempts: Attempts | None = None
        self._turns: Turns | None = None
        self._probes: Probes | None = None

    @property
    def num_open(self) -> int:
        """How many requests are under way."""
        return self._books.num_open

    @property
    def chooser(self) -> Chooser:
        """Who decides."""
        return self._chooser

    async def start(self) -> None:
        """Open connections and begin to probe, in the worker's event loop; once is enough."""
        if self._connections is not None:
            return
        config = self.fleet.gateway
        self._connections = Connections(config.timeouts)
        sender: Sender = WireSender(self._connections)
        self._attempts = Attempts(
            self._lines, sender, config, on_lie=self._metrics.count_lie, chance=self._chance
        )
        self._turns = Turns(self._attempts, self._prices, config)
        self._probes = Probes(self._connections, self._lines.values(), config.probe)
        self._probes.start()

    async def stop(self) -> None:
        """Close all connections; what is under way breaks off."""
        if self._probes is not None:
            await self._probes.stop()
        if self._connections is not None:
            await self._connections.close()

    def take_over(self, earlier: "Gateway") -> None:
        """Know of servers what the gateway of an earlier configuration did."""
        for name, line in self._lines.items():
            if name in earlier._lines:
                line.take_over(earlier._lines[name])

    def view(self) -> FleetView:
        """Return how the fleet is now."""
        return self._tally.view()

    async def relay(self, call: Call) -> Reply | None:
        """Answer a call; None where it must be translated first.

        Errors are those of a Backend.
        """
        if call.path not in KINDS:
            return None
        trace = Trace(call=call, reason=AUDIT if call.is_audit else "")
        if KINDS[call.path] == "messages" and not self._choose_raw(trace):
            return None
        trace.span = None if self._tracing is None else self._tracing.begin(call)
        self._books.open()
        try:
            return await self._relay(trace)
        except BaseException as error:
            outcome = outcome_of(error)
            shown = str(error) if isinstance(error, MoestroError) else type(error).__name__
            self._books.close(trace, outcome, status_of(error, outcome), shown)
            raise

    async def _relay(self, trace: Trace) -> Reply | None:
        asked = trace.asked = trace.asked or read_call(trace.call)
        choice = trace.choice or self._chooser.choose(asked, trace.call.caller)
        trace.choice = choice
        trace.reason = trace.reason or choice.reason
        kept = await self._memory.find(trace)
        self._books.admit(trace, is_free=kept is not None or asked.is_free)
        if kept is not None:
            trace.first_s = trace.elapsed_s()
            self._chooser.settle(asked, choice, trace.model)
            self._books.close(trace, "answered", 200, None)
            return repeat(trace, kept)
        assert self._turns is not None, "the gateway was not started"
        outgoing = Outgoing(asked=asked)
        leg = await self._turns.open(trace, outgoing)
        if asked.is_written:
            trace.first_s = trace.elapsed_s()
        if leg.status != 200:
            return self._refuse(trace, leg)
        trace.experts = leg.incoming.experts
        if asked.is_written:
            self._chooser.settle(asked, choice, trace.model, is_stand_in=trace.is_stand_in)
        if asked.is_stream:
            return await self._pass_stream(trace, outgoing, leg)
        return self._pass_whole(trace, leg)

    def _pass_whole(self, trace: Trace, leg: Leg) -> Reply:
        leg.close()
        trace.usage = leg.piece.usage if leg.piece is not None else None
        if trace.usage is None or as_count(trace.usage.completion_tokens) is None:
            trace.num_events = count_answer_tokens(leg.body)
        headers = trace.headers(leg.incoming.content_type)
        whole_s = None if trace.first_s is None else trace.elapsed_s()
        leg.member.health.note_success(trace.first_s, whole_s)
        answer = text_of(leg.body) if self._books.reads_answers else ""
        self._books.close(trace, "answered", 200, None, answer)
        self._memory.keep(trace, {"content-type": headers["content-type"]}, leg.body)
        return Reply(status=200, headers=headers, body=leg.body, spent=trace.spent)

    async def _pass_stream(self, trace: Trace, outgoing: Outgoing, leg: Leg) -> Reply:
        assert trace.choice is not None
        assert self._attempts is not None
        leg.member.health.note_success(trace.first_s)
        passage = StreamOut(
            asked=outgoing.asked,
            choice=trace.choice,
            outgoing=outgoing,
            leg=leg,
            trace=trace,
            attempts=self._attempts,
            lines=self._lines,
            config=self.fleet.gateway,
            on_end=self._end_stream,
            on_failover=self._metrics.count_failover,
        )
        headers = {**trace.headers(""), **STREAM_HEADERS}
        body = passage.relay()
        await anext(body)
        return Reply(status=200, headers=headers, body=body, spent=trace.spent)

    def _refuse(self, trace: Trace, leg: Leg) -> Reply:
        reply = pass_refusal(leg, trace)
        error = f"{leg.member.name} refused the request"
        self._books.close(trace, "refused", leg.status, error)
        return reply

    def _end_stream(self, passage: StreamOut, outcome: Outcome) -> None:
        trace, told = passage.trace, passage.told
        trace.usage = told.whole_usage
        trace.num_events = told.num_tokens
        trace.extra_usd += passage.earlier_usd(self._prices)
        if outcome == "answered":
            passage.leg.member.health.latency.whole.add(trace.elapsed_s())
        self._metrics.count_events(trace.model, told.num_tokens)
        answer = told.text if self._books.reads_answers else ""
        self._books.close(trace, outcome, 200, passage.error, answer)
        if outcome == "answered":
            self._memory.keep(trace, STREAM_HEADERS)

    def _choose_raw(self, trace: Trace) -> bool:
        """Choose who answers a call to /v1/messages; False if it must be translated for them.

        Bytes go only to models whose backends all speak that: they are the only ones to fall back
        on, too. A cascade that needs other words has them where nothing is lost by that.
        """
        if not any(map(self._speaks_messages, self._lines)):
            # Whoever translates chooses anew: a choice here would be made twice.
            return False
        try:
            asked = read_call(trace.call)
            choice = self._chooser.choose(asked, trace.call.caller)
            if choice.cascade is not None and not self._may_cascade_raw(choice):
                if is_translatable(asked):
                    return False
                choice = self._chooser.choose(asked, trace.call.caller, may_cascade=False)
        except MoestroError:
            # The routes will say what is wrong with it.
            return False
        models = tuple(filter(self._speaks_messages, choice.models))
        if models[:1] != choice.models[:1]:
            return False
        trace.asked, trace.choice = asked, replace(choice, models=models)
        return True

    def _may_cascade_raw(self, choice: ModelChoice) -> bool:
        """Tell whether a small model's answer can be looked at in its own words: none of a token's
        probability is told in them.
        """
        assert choice.cascade is not None
        is_spoken = self._speaks_messages(choice.models[0])
        has_rest = any(map(self._speaks_messages, choice.models[1:]))
        return choice.cascade.reads_whole and is_spoken and has_rest

    def _speaks_messages(self, model: str) -> bool:
        members = self._lines[model].members
        return bool(members) and all(each.upstream.dialect == "anthropic" for each in members)

    def _is_up(self, model: str) -> bool:
        return any(member.health.may_ask() for member in self._lines[model].members)


def _build_line(
    fleet: Fleet, model: FleetModel, shared: Shared, chance: random.Random | None
) -> Line:
    members: list[Member] = []
    for index, config in enumerate(fleet.backends_of(model)):
        name = f"{model.name}/{index}"
        known = [(each.upstream.config.url, each.upstream.config.model) for each in members]
        copy = known.count((config.url, config.model))
        upstream = build_upstream(name, model.name, config, copy=copy, is_local=model.is_local)
        members.append(Member(upstream, Health(upstream, shared, fleet.gateway.breaker)))
    return Line(model.name, members, fleet.gateway.queue, shared, chance=chance)
