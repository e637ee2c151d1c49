"""One request to the right model, and its answer back: READ FIRST.

A call is read as far as a decision needs it, a model is chosen, a backend of it answers, and bytes
go on as they come. Next: asked.py, choosing.py, attempts.py, failover.py.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from moestro.api.fleet_view import FleetView
from moestro.api.record import OnFinished, Outcome, Record
from moestro.api.relay import Call, Reply
from moestro.errors import BackendError, CapacityError, MoestroError
from moestro.gateway.asked import KINDS, read_call
from moestro.gateway.attempts import Attempts, Outgoing, Sender
from moestro.gateway.choosing import Chooser, Floor, Permits, Policy
from moestro.gateway.events import Piece
from moestro.gateway.failover import Passage
from moestro.gateway.fleet import Fleet, FleetModel, Price
from moestro.gateway.health import Health
from moestro.gateway.legs import Leg
from moestro.gateway.metrics import GatewayMetrics
from moestro.gateway.probe import Probes
from moestro.gateway.queue import Line, Member
from moestro.gateway.refused import pass_refusal
from moestro.gateway.shared import Alone, Conversations, RecentConversations, Shared
from moestro.gateway.speaking import WireSender
from moestro.gateway.tally import Tally
from moestro.gateway.trace import Trace, outcome_of, tell_all
from moestro.gateway.upstream import Connections, build_upstream

_BROKEN_STATUS = {"refused": 400, "failed": 503, "left": 499}
_NO_PRICE = Price()


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a gateway has around it; left out, it is one worker on its own.

    `listeners` get each request's record. `shared` and `conversations` are what several workers
    have in common. `floor` tells whether a policy may be trusted, `permits` what callers may ask.
    """

    listeners: Sequence[OnFinished] = ()
    shared: Shared | None = None
    conversations: Conversations | None = None
    floor: Floor | None = None
    permits: Permits | None = None
    metrics: GatewayMetrics | None = None
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
            floor=around.floor,
            permits=around.permits,
        )
        self._metrics = around.metrics or GatewayMetrics()
        self._tally = Tally(fleet, self._lines, self._chooser)
        self._listeners = (self._tally.add, self._metrics.add, *around.listeners)
        self._chance = around.chance
        self._connections: Connections | None = None
        self._attempts: Attempts | None = None
        self._probes: Probes | None = None

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
        self._probes = Probes(self._connections, self._lines.values(), config.probe)
        self._probes.start()

    async def stop(self) -> None:
        """Close all connections; what is under way breaks off."""
        if self._probes is not None:
            await self._probes.stop()
        if self._connections is not None:
            await self._connections.close()

    def view(self) -> FleetView:
        """Return how the fleet is now."""
        return self._tally.view()

    async def relay(self, call: Call) -> Reply | None:
        """Answer a call; None where it must be translated first.

        Errors are those of a Backend.
        """
        if KINDS.get(call.path, "messages") == "messages":
            return None
        trace = Trace(call=call)
        try:
            return await self._relay(trace)
        except BaseException as error:
            outcome = outcome_of(error)
            shown = str(error) if isinstance(error, MoestroError) else type(error).__name__
            self._end(trace, outcome, status_of(error, outcome), shown)
            raise

    async def _relay(self, trace: Trace) -> Reply | None:
        asked = trace.asked = read_call(trace.call)
        choice = trace.choice = self._chooser.choose(asked, trace.call.caller)
        trace.reason = choice.reason
        outgoing = Outgoing(asked=asked)
        leg = await self._open(trace, outgoing)
        trace.first_s = trace.elapsed_s()
        self._chooser.settle(asked, choice, trace.model)
        if leg.status != 200:
            return self._refuse(trace, leg)
        if asked.is_stream:
            return self._pass_stream(trace, outgoing, leg)
        return self._pass_whole(trace, leg)

    async def _open(self, trace: Trace, outgoing: Outgoing) -> Leg:
        """Ask the model chosen; if none of its backends answers, the next one."""
        assert trace.choice is not None
        assert self._attempts is not None, "the gateway was not started"
        last: BackendError | CapacityError | None = None
        for model in trace.choice.models:
            try:
                leg = await self._attempts.open(model, outgoing, trace)
            except (BackendError, CapacityError) as error:
                last = last or error
                trace.reason = f"{trace.choice.reason}; {model} did not answer"
                continue
            trace.model, trace.member = model, leg.member
            return leg
        assert last is not None
        raise last

    def _pass_whole(self, trace: Trace, leg: Leg) -> Reply:
        leg.close()
        trace.usage = leg.piece.usage if leg.piece is not None else None
        trace.num_events = _count_whole(leg.piece)
        headers = trace.headers(leg.incoming.content_type)
        leg.member.health.note_success(trace.first_s, trace.elapsed_s())
        self._end(trace, "answered", 200)
        return Reply(status=200, headers=headers, body=leg.body, spent=trace.spent)

    def _pass_stream(self, trace: Trace, outgoing: Outgoing, leg: Leg) -> Reply:
        assert trace.choice is not None
        assert self._attempts is not None
        leg.member.health.note_success(trace.first_s)
        passage = Passage(
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
        headers = trace.headers("text/event-stream; charset=utf-8")
        headers |= {"cache-control": "no-store", "x-accel-buffering": "no"}
        return Reply(status=200, headers=headers, body=passage.relay(), spent=trace.spent)

    def _refuse(self, trace: Trace, leg: Leg) -> Reply:
        leg.close()
        leg.member.health.note_success()
        reply = pass_refusal(leg, trace)
        self._end(trace, "refused", leg.status, f"{leg.member.name} refused the request")
        return reply

    def _end_stream(self, passage: Passage, outcome: Outcome) -> None:
        trace, told = passage.trace, passage.told
        trace.usage = told.whole_usage
        trace.num_events = told.num_tokens
        if outcome == "answered":
            passage.leg.member.health.latency.whole.add(trace.elapsed_s())
        self._metrics.count_events(trace.model, told.num_tokens)
        self._end(trace, outcome, 200, passage.error)

    def _end(self, trace: Trace, outcome: Outcome, status: int, error: str | None = None) -> None:
        """Make the record of a request and give it to all who want it, once."""
        if trace.is_finished:
            return
        trace.is_finished = True
        strongest = self._chooser.strongest
        price = self._prices.get(trace.model, _NO_PRICE)
        best = None if strongest is None else self._prices[strongest]
        record: Record = trace.record(outcome, status, price, best, error)
        tell_all(self._listeners, record)

    def _is_up(self, model: str) -> bool:
        return any(member.health.may_ask() for member in self._lines[model].members)


def status_of(error: BaseException, outcome: Outcome) -> int:
    """Return the status that the server will give an error, for the record."""
    if isinstance(error, CapacityError):
        return 429
    return _BROKEN_STATUS.get(outcome, 500)


def _build_line(
    fleet: Fleet, model: FleetModel, shared: Shared, chance: random.Random | None
) -> Line:
    members = []
    for index, config in enumerate(fleet.backends_of(model)):
        name = f"{model.name}/{index}"
        upstream = build_upstream(name, model.name, config, is_local=model.is_local)
        members.append(Member(upstream, Health(upstream, shared, fleet.gateway.breaker)))
    return Line(model.name, members, fleet.gateway.queue, shared, chance=chance)


def _count_whole(piece: Piece | None) -> int:
    # Without a usage the words are not counted: an answer has one, as a rule.
    return len(piece.choices or ()) if piece is not None else 0
