"""The floor on live traffic: some answers are compared with the strongest model's, and when the
evidence says that the promised quality does not hold, `auto` goes to the strongest model.

All workers share one test, which advances along the outcomes in their order. Next: shift_watch.py,
policy/monitor.py, policy/audit.py.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import msgspec
from prometheus_client import Gauge

from moestro.api.record_view import ScoredOutcome
from moestro.api.relay import Call
from moestro.errors import CapacityError, DataError, MoestroError, StorageError
from moestro.gateway.asked import Asked
from moestro.gateway.books import Finished
from moestro.gateway.content import text_of
from moestro.gateway.current import CurrentGateway
from moestro.policy.audit import AuditPlan, build_judging, match, read_verdict
from moestro.policy.monitor import FloorMonitor
from moestro.records.outcomes import NewOutcome
from moestro.records.records import Records

log = logging.getLogger(__name__)

_LOOK_S = 0.5
_MOST_AUDITS = 16


class FloorWatch:
    """Whether the floor holds, by what all workers have seen; `name` is that of the promise."""

    def __init__(self, records: Records, name: str, floor: float, gauge: Gauge) -> None:
        self.monitor = FloorMonitor(floor)
        self.lost_at: float | None = None
        self._records = records
        self._name = f"floor:{name}"
        self._gauge = gauge
        self._gauge.set(1)

    @property
    def is_held(self) -> bool:
        """False as soon as the evidence says otherwise."""
        return self.monitor.is_held

    async def run(self) -> None:
        """Follow the outcomes until cancelled."""
        while True:
            with suppress(StorageError, CapacityError):
                await self._look()
            await asyncio.sleep(_LOOK_S)

    async def _look(self) -> None:
        # Audits of before were those of another policy or promise.
        state = await self._records.advance(self._name, self._step, kind="audit", is_from_now=True)
        was_held = self.monitor.is_held
        self.monitor, self.lost_at = self._read(state), state.get("lost_at")
        self._gauge.set(self.monitor.is_held)
        if was_held and not self.monitor.is_held:
            log.error(
                "the floor of %g does not hold on live traffic (%d audits): auto goes to the"
                " strongest model until `moestro policy calibrate` has run on newer outcomes",
                self.monitor.floor,
                self.monitor.num_audits,
            )

    def _step(self, state: Mapping[str, Any], outcome: ScoredOutcome) -> dict[str, Any]:
        monitor = self._read(state)
        if outcome.strongest_score is not None:
            monitor.observe(outcome.score, outcome.strongest_score)
        lost_at = state.get("lost_at") or (None if monitor.is_held else time.time())
        return {**monitor.to_dict(), "lost_at": lost_at}

    def _read(self, state: Mapping[str, Any]) -> FloorMonitor:
        try:
            return FloorMonitor.from_dict(state) if state else FloorMonitor(self.monitor.floor)
        except DataError as error:
            # Another version's, maybe: a watch that goes on is worth more than what it had seen.
            log.warning("%s", error)
            return FloorMonitor(self.monitor.floor)


class Auditor:
    """Has some requests answered by the strongest model too, and both answers scored.

    Requests that the policy sent to the strongest model are among them, with one answer and one
    score: the floor is promised of all requests, and those to cheaper models alone may lie below.
    """

    def __init__(
        self, records: Records, gateway: Callable[[], CurrentGateway], plan: AuditPlan, judge: str
    ) -> None:
        """`judge` is "match", or the name of a model that grades."""
        self._records = records
        self._gateway = gateway
        self._plan = plan
        self._judge = judge
        self._num_requests = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, finished: Finished) -> None:
        """Begin an audit of an answer, if it is one's turn."""
        record, choice = finished.record, finished.choice
        strongest = self._gateway().chooser.strongest
        if not choice.is_auto or choice.is_distrusted or strongest is None or not finished.answer:
            return
        self._num_requests += 1
        is_due = self._plan.has(record.request_id, self._num_requests)
        # Beyond that many they would take the place of requests.
        if is_due and len(self._tasks) < _MOST_AUDITS:
            task = asyncio.create_task(self._audit(finished, strongest))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _audit(self, finished: Finished, strongest: str) -> None:
        record, asked = finished.record, finished.asked
        try:
            other = finished.answer
            if record.model != strongest:
                other = await self._ask(record.request_id, asked, strongest)
            scores = await self._score(record.request_id, asked, finished.answer, other)
            outcome = NewOutcome(
                request_id=record.request_id,
                caller=record.caller,
                model=record.model,
                score=scores[0],
                strongest_score=scores[1],
            )
            await self._records.add_outcome(outcome)
        except MoestroError as error:
            log.warning("the audit of request %s came to nothing: %s", record.request_id, error)

    async def _score(
        self, request_id: str, asked: Asked, answer: str, other: str
    ) -> tuple[float, float]:
        if self._judge == "match":
            return match(answer, other)
        score = read_verdict(await self._grade(request_id, asked.prompt, answer))
        # One text has one score: asked twice, a judge may say two things of it.
        if other == answer:
            return score, score
        return score, read_verdict(await self._grade(request_id, asked.prompt, other))

    async def _ask(self, request_id: str, asked: Asked, model: str) -> str:
        changes = {"model": model, "stream": None, "stream_options": None, "n": None}
        return await self._relay(asked.path, asked.body_with(changes), request_id)

    async def _grade(self, request_id: str, prompt: str, answer: str) -> str:
        question = {"role": "user", "content": build_judging(prompt, answer)}
        body = {"model": self._judge, "messages": [question], "temperature": 0, "max_tokens": 32}
        return await self._relay("/v1/chat/completions", msgspec.json.encode(body), request_id)

    async def _relay(self, path: str, body: bytes, request_id: str) -> str:
        call = Call(path=path, body=body, request_id=f"{request_id}-audit", is_audit=True)
        reply = await self._gateway().relay(call)
        if reply is None or not isinstance(reply.body, bytes) or reply.status != 200:
            raise DataError("no answer to compare with came")
        return text_of(reply.body)
