"""READ FIRST. What a gateway asks of records: may this request begin, and what became of it.

Admitting and finishing touch memory only; threads of their own read and write the database. Start
it in the process that uses it. Next: key_ring.py, meters.py, ledger.py.
"""

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from moestro.api.key_terms import KeyTerms
from moestro.api.record import Record
from moestro.api.record_view import RecordsHealth, ScoreKind
from moestro.errors import ForbiddenError, UnknownKeyError
from moestro.records.config import RecordsConfig
from moestro.records.counts import LedgerCounts
from moestro.records.database import Database
from moestro.records.decisions import Entry
from moestro.records.key_ring import KeyRing
from moestro.records.ledger import Ledger
from moestro.records.meters import Estimate, Hold, Meters
from moestro.records.outcomes import (
    Change,
    NewOutcome,
    State,
    Step,
    advance,
    append_outcome,
    change_state,
    find_state,
)
from moestro.records.poll import Poll
from moestro.records.remembered import Remembered
from moestro.records.shared import SharedFile, create_shared
from moestro.records.writer import DatabaseWriter, Writer

_STOP_S = 5.0
# Fewer than English has, so that an estimate is seldom too low.
_BYTES_PER_TOKEN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Admission:
    """A request that may begin; `hold` is what it holds of its key's means, if they are limited."""

    caller: str | None
    hold: Hold | None = None


class Records:
    """Keys, limits, budgets and the ledger of one worker.

    `shared` is the file that the host's workers share; None for one worker alone. One worker of a
    host is its `keeper`, who deletes what is too old. `writer` writes the ledger; without one, a
    thread of this process does.
    """

    def __init__(
        self,
        config: RecordsConfig,
        *,
        shared: Path | None = None,
        worker: int = 0,
        is_keeper: bool = True,
        writer: Writer | None = None,
    ) -> None:
        self.config = config
        self.database = Database(config)
        self.ring = KeyRing()
        self._own_shared = create_shared(1) if shared is None else None
        self.shared = SharedFile(shared or self._own_shared or Path(), worker)
        self.meters = Meters(self.shared)
        self._counts = LedgerCounts(self.shared)
        self.ledger = Ledger(
            writer or DatabaseWriter(self.database),
            self._counts,
            max_waiting=config.max_waiting_records,
            flush_s=config.flush_s,
        )
        self.remembered = Remembered(self.database, config.cache)
        self.poll = Poll(
            config,
            self.database,
            self.ring,
            self.meters,
            self.remembered.flush,
            is_keeper=is_keeper,
        )
        self._under_way: dict[tuple[str, str], list[Admission]] = {}

    def start(self) -> None:
        """Read the keys and begin to write; raises StorageError if there is no database yet.

        Without it nobody would know who may come in. Once started, it may go away.
        """
        self.database.open()
        self.poll.refresh()
        self.poll.start()
        self.ledger.start()

    def stop(self, deadline_s: float = _STOP_S) -> None:
        """Write what waits, and end."""
        self.poll.stop()
        self.ledger.stop(deadline_s)
        self.database.close()
        if self._own_shared is not None:
            self._own_shared.unlink(missing_ok=True)

    def find_name(self, presented: Sequence[bytes]) -> str | None:
        """Return whose key is among those presented."""
        return self.ring.find_name(presented)

    def allowed_models(self, caller: str | None) -> Collection[str] | None:
        """Return the models that a caller may use, None for all."""
        known = None if caller is None else self.ring.find(caller)
        return None if known is None else known.terms.allowed_models

    def estimate(
        self, *, body_bytes: int, max_tokens: int | None, input_usd: float, output_usd: float
    ) -> Estimate:
        """Return what a request of this size may take; prices are per million tokens.

        An answer without `max_tokens` is taken to have `assumed_answer_tokens`: what it has beyond
        them, and what a prompt's text has beyond a token for every three bytes, is how far a
        request under way can pass its key's budget.
        """
        prompt = -(-body_bytes // _BYTES_PER_TOKEN)
        answer = self.config.assumed_answer_tokens if max_tokens is None else max_tokens
        cost_usd = (prompt * input_usd + answer * output_usd) / 1e6
        return Estimate(num_tokens=prompt + answer, cost_usd=cost_usd)

    def admit(
        self,
        caller: str | None,
        model: str,
        estimate: Estimate | None,
        *,
        request_id: str | None = None,
    ) -> Admission:
        """Let a request begin, or raise what OpenAI answers with 401, 403 or 429.

        Without an estimate it costs nothing, and is let in when the budget is spent as well.
        With `request_id`, `finish` settles it by its record. A caller without a key here has no
        limits: its key stands in the configuration.
        """
        terms = self._terms(caller)
        if terms is None:
            return Admission(caller=caller)
        if not terms.allows(model):
            raise ForbiddenError(
                f"the key {terms.name} may not use {model}: it may use"
                f" {', '.join(terms.allowed_models or ())}"
            )
        if not _is_limited(terms):
            return Admission(caller=caller)
        hold = self.meters.hold(terms, estimate, self.poll.spent(terms))
        admission = Admission(caller=caller, hold=hold)
        if request_id is not None:
            self._under_way.setdefault((terms.name, request_id), []).append(admission)
        return admission

    def settle(self, admission: Admission, record: Record | None) -> None:
        """Count what a request used, nothing without a record, and give back what it held."""
        if admission.hold is None:
            return
        cost_usd = 0.0 if record is None else record.cost_usd
        tokens = 0 if record is None else record.prompt_tokens + record.completion_tokens
        self.meters.settle(admission.hold, cost_usd, tokens)

    def finish(
        self, record: Record, *, prompt: str | None = None, answer: str | None = None
    ) -> None:
        """Settle a request that was admitted by its id, and queue its record; never waits."""
        self._settle_by_id(record)
        keeps = self.config.keeps_prompts
        self.ledger.add(Entry(record, prompt if keeps else None, answer if keeps else None))

    def drop(self, caller: str | None, request_id: str) -> None:
        """Give back what a request held that ended without any record."""
        admission = self._take_under_way(caller, request_id)
        if admission is not None:
            self.settle(admission, None)

    async def add_outcome(self, outcome: NewOutcome) -> int:
        """Write a score and return its number; raises StorageError if it cannot be kept."""
        return await asyncio.to_thread(self._write_outcome, outcome)

    async def advance(self, name: str, step: Step, *, kind: ScoreKind | None = None) -> State:
        """Apply `step` to the state that workers share for each outcome it has not seen, once."""
        return await asyncio.to_thread(advance, self.database, name, step, kind=kind)

    async def state(self, name: str) -> State:
        """Return a state that workers share as it is now, an empty one at first."""
        return await asyncio.to_thread(find_state, self.database, name)

    async def change_state(self, name: str, change: Change) -> State:
        """Apply `change` to a state that workers share, and return it."""
        return await asyncio.to_thread(change_state, self.database, name, change)

    def health(self) -> RecordsHealth:
        """Return how keeping goes; touches no disk."""
        trouble = self.ledger.trouble or self.poll.trouble
        return RecordsHealth(
            is_reachable=trouble is None,
            waiting_records=self.ledger.num_waiting,
            written_records=self.ledger.num_written,
            lost_records=self.ledger.num_lost,
            writer_restarts=self._counts.num_restarts,
            trouble=trouble,
            keeps_prompts=self.config.keeps_prompts,
            retention_days=self.config.retention_days,
            cache=self.remembered.counts(),
        )

    def _write_outcome(self, outcome: NewOutcome) -> int:
        with self.database.write() as connection:
            return append_outcome(connection, outcome)

    def _terms(self, caller: str | None) -> KeyTerms | None:
        known = None if caller is None else self.ring.find(caller)
        if known is None:
            return None
        if not known.is_usable(time.time()):
            raise UnknownKeyError(f"the key {caller} was revoked or has expired: use another one")
        return known.terms

    def _settle_by_id(self, record: Record) -> None:
        admission = self._take_under_way(record.caller, record.request_id)
        if admission is not None:
            self.settle(admission, record)

    def _take_under_way(self, caller: str | None, request_id: str) -> Admission | None:
        key = (caller or "", request_id)
        admissions = self._under_way.get(key)
        if not admissions:
            return None
        if len(admissions) == 1:
            del self._under_way[key]
        return admissions.pop()


def _is_limited(terms: KeyTerms) -> bool:
    limits = (
        terms.budget_usd,
        terms.budget_tokens,
        terms.requests_per_minute,
        terms.tokens_per_minute,
        terms.concurrent_requests,
    )
    return any(limit is not None for limit in limits)
