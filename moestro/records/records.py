"""READ FIRST. What a gateway asks of records: may this request begin, and what became of it.

Admitting and finishing touch memory only; threads of their own read and write the database. Start
it in the process that uses it. Next: key_ring.py, meters.py, ledger.py.
"""

import asyncio
import time
from collections.abc import Collection, Sequence
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

    def has_expired(self, presented: Sequence[bytes]) -> bool:
        """Tell whether a key among those presented has expired."""
        return self.ring.has_expired(presented)

    def allowed_models(self, caller: str | None) -> Collection[str] | None:
        """Return the models that a caller may use, None for all."""
        known = None if caller is None else self.ring.find(caller)
        return None if known is None else known.terms.allowed_models

    def admit(self, caller: str | None, model: str, estimate: Estimate | None) -> Hold | None:
        """Let a request begin, or raise what OpenAI answers with 401, 403 or 429.

        Returns what it holds of its key's means until it is settled, if those are limited. Without
        an estimate it costs nothing, and is let in when the budget is spent as well. A caller
        without a key here has no limits: its key stands in the configuration.
        """
        terms = self._terms(caller)
        if terms is None:
            return None
        if not terms.allows(model):
            raise ForbiddenError(
                f"the key {terms.name} may not use {model}: it may use"
                f" {', '.join(terms.allowed_models or ())}"
            )
        if not _is_limited(terms):
            return None
        return self.meters.hold(terms, estimate, self.poll.spent(terms))

    def settle(self, hold: Hold, record: Record) -> None:
        """Give back what a request held, and count what it used."""
        num_tokens = record.prompt_tokens + record.completion_tokens
        self.meters.settle(hold, record.cost_usd, num_tokens)

    def finish(
        self, record: Record, *, prompt: str | None = None, answer: str | None = None
    ) -> None:
        """Queue the record of a request that has ended, let in or not; never waits."""
        keeps = self.config.keeps_prompts
        self.ledger.add(Entry(record, prompt if keeps else None, answer if keeps else None))

    async def add_outcome(self, outcome: NewOutcome) -> int:
        """Write a score and return its number; raises StorageError if it cannot be kept."""
        return await asyncio.to_thread(self._write_outcome, outcome)

    async def advance(
        self, name: str, step: Step, *, kind: ScoreKind | None = None, is_from_now: bool = False
    ) -> State:
        """Apply `step` to the state that workers share for each outcome it has not seen, once.

        With `is_from_now` a new state has seen all that there are.
        """
        return await asyncio.to_thread(
            advance, self.database, name, step, kind=kind, is_from_now=is_from_now
        )

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


def _is_limited(terms: KeyTerms) -> bool:
    limits = (
        terms.budget_usd,
        terms.budget_tokens,
        terms.requests_per_minute,
        terms.tokens_per_minute,
        terms.concurrent_requests,
    )
    return any(limit is not None for limit in limits)
