"""Records as a gateway's worker sees them: a door, keys, answers kept, and what workers share.

Ties moestro/records to the protocols of moestro/gateway and moestro/server, which do not know each
other. Next: gateway_app.py.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from moestro.api.record import Record
from moestro.gateway.books import AnswerBound
from moestro.gateway.breaker import Breaker
from moestro.gateway.remembering import Kept
from moestro.gateway.trace import Settle
from moestro.records import answers
from moestro.records.busy import BusyBackends, Numbers
from moestro.records.counts import SharedCounts
from moestro.records.latest import SharedLatest
from moestro.records.meters import Estimate
from moestro.records.records import Records
from moestro.records.remembered import Remembered
from moestro.records.shared import SharedFile
from moestro.server.keys import Keys

# What meters add and take away again without a loss; no answer has so many.
_MOST_TOKENS = 10**9
# Where a breaker's successes stand among its numbers.
_NUM_GOOD = Breaker._fields.index("num_good")


class RecordsDoor:
    """Lets requests in by their key's terms, and writes down what became of them."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self.keeps_texts = records.config.keeps_prompts

    def admit(
        self,
        caller: str | None,
        model: str,
        *,
        num_prompt: int,
        answer: AnswerBound | None,
    ) -> Settle | None:
        """Let a request in, or raise what the caller is told."""
        estimate = None if answer is None else self._estimate(num_prompt, answer)
        hold = self._records.admit(caller, model, estimate)
        return None if hold is None else partial(self._records.settle, hold)

    def finish(self, record: Record, *, prompt: str, answer: str) -> None:
        """Keep it."""
        self._records.finish(record, prompt=prompt, answer=answer)

    def _estimate(self, num_prompt: int, answer: AnswerBound) -> Estimate:
        limit = answer.max_tokens
        each = self._records.config.assumed_answer_tokens if limit is None else limit
        num_answer = min(each * answer.num_answers, _MOST_TOKENS)
        return Estimate(
            num_tokens=num_prompt + num_answer,
            cost_usd=answer.price.cost_usd(num_prompt, num_answer),
        )


class KeptAnswers:
    """Answers that the records keep, where their configuration asks for it."""

    def __init__(self, remembered: Remembered, max_answer_bytes: int) -> None:
        self.max_answer_bytes = max_answer_bytes
        self._remembered = remembered
        self._tasks: set[asyncio.Task[bool]] = set()

    def name(
        self, path: str, body: Mapping[str, Any], model: str, caller: str | None
    ) -> str | None:
        """Return the name of a question, None where its answer must not be given twice."""
        return self._remembered.name(path, body, model, caller)

    async def find(self, name: str) -> Kept | None:
        """Return the answer to a question of this name."""
        found = await self._remembered.find(name)
        return None if found is None else Kept(body=found.body, headers=found.headers)

    def keep(self, name: str, kept: Kept) -> None:
        """Keep an answer, beside whatever comes next."""
        answer = answers.KeptAnswer(body=kept.body, headers=kept.headers)
        task = asyncio.get_running_loop().create_task(self._remembered.keep(name, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class FleetKeys:
    """Keys of the configuration and those of the records; none at all lets everybody in."""

    def __init__(self, configured: Keys, records: Records) -> None:
        self._configured = configured
        self._records = records

    def __bool__(self) -> bool:
        return bool(self._configured) or bool(self._records.ring)

    def find_name(self, presented: Sequence[bytes]) -> str | None:
        """Return whose key is among those presented."""
        return self._configured.find_name(presented) or self._records.find_name(presented)

    def has_expired(self, presented: Sequence[bytes]) -> bool:
        """Tell whether a key among them has expired."""
        return self._records.has_expired(presented)


class SharedBackends:
    """What all workers know of backends: who is busy, breakers, counts, and latencies of late."""

    def __init__(self, file: SharedFile) -> None:
        busy, counts, latest = BusyBackends(file), SharedCounts(file), SharedLatest(file)
        self._busy = busy
        self.began_at = counts.began_at
        self.count = counts.count
        self.counted = counts.counted
        self.note = latest.note
        self.latest = latest.latest
        self.try_enter = busy.try_enter
        self.leave = busy.leave
        self.num_in_flight = busy.num_in_flight

    def read_breaker(self, backend: str) -> Breaker:
        """Return a backend's breaker."""
        return _read_breaker(self._busy.read_numbers(backend))

    def change_breaker(self, backend: str, change: Callable[[Breaker], Breaker]) -> None:
        """Replace it by what follows from it."""
        self._busy.change_numbers(backend, lambda numbers: change(_read_breaker(numbers)))

    def count_good(self, backend: str) -> None:
        """Count a success in it."""
        self._busy.count_number(backend, _NUM_GOOD)


def _read_breaker(numbers: Numbers) -> Breaker:
    row, good, bad, window_at, open_until, trips, probed_at = numbers
    return Breaker(int(row), int(good), int(bad), window_at, open_until, int(trips), probed_at)
