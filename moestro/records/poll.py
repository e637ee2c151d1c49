"""A thread that looks into the database now and then: keys that changed, money spent elsewhere.

The keeper's also deletes what is too old, in small steps. Knows no requests. Next: key_ring.py,
retention.py.
"""

import logging
import threading
import time
from collections.abc import Callable

from moestro.api.key_terms import KeyTerms
from moestro.errors import MoestroError
from moestro.records.config import RecordsConfig
from moestro.records.database import Database
from moestro.records.key_ring import KeyRing
from moestro.records.meters import Meters
from moestro.records.periods import period_of, periods_of
from moestro.records.retention import delete_outdated
from moestro.records.usage import Spending, find_spent

log = logging.getLogger(__name__)

_KEEPING_S = 60.0


class Poll:
    """Refreshes keys and what they spent; `flush` writes what others left for a quiet moment."""

    def __init__(
        self,
        config: RecordsConfig,
        database: Database,
        ring: KeyRing,
        meters: Meters,
        flush: Callable[[], None],
        *,
        is_keeper: bool,
    ) -> None:
        self._config = config
        self._database = database
        self._ring = ring
        self._meters = meters
        self._flush = flush
        self._is_keeper = is_keeper
        self._kept_at = 0.0
        self._spent: dict[tuple[str, str], Spending] = {}
        self._active: set[str] = set()
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="records-poll", daemon=True)
        self.trouble: str | None = None

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._is_stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def spent(self, terms: KeyTerms) -> Spending:
        """Return what a key had spent when last looked at, and look again soon."""
        self._active.add(terms.name)
        return self._spent.get((terms.name, period_of(terms.budget_period, time.time())), (0.0, 0))

    def refresh(self) -> None:
        """Read what changed; raises StorageError if the database cannot be read."""
        has_new_keys = self._ring.refresh(self._database)
        names = self._ring.names() if has_new_keys else self._active
        self._active = set()
        self._refresh_spent(names)

    def _run(self) -> None:
        while not self._is_stopping.wait(self._config.poll_s):
            try:
                self.refresh()
                self._flush()
                self._keep()
                self.trouble = None
            except MoestroError as error:
                self.trouble = str(error)
            except Exception as error:  # A worker loop: without it no key is revoked any more.
                log.exception("what changed in the database could not be taken over")
                self.trouble = f"{type(error).__name__}: {error}"

    def _refresh_spent(self, names: "set[str] | list[str]") -> None:
        moment = time.time()
        known = [known for name in list(names) if (known := self._ring.find(name)) is not None]
        limited = [key.terms for key in known if _has_budget(key.terms)]
        if not limited:
            return
        asked = [(terms.name, period_of(terms.budget_period, moment)) for terms in limited]
        with self._database.read() as connection:
            found = find_spent(connection, asked)
        present = set(periods_of(moment))
        kept = {pair: each for pair, each in self._spent.items() if pair[1] in present}
        self._spent = {**kept, **found}
        for (name, period), (cost_usd, num_tokens) in found.items():
            self._meters.raise_spent(name, period, cost_usd, num_tokens)

    def _keep(self) -> None:
        if self._is_keeper and time.monotonic() - self._kept_at > _KEEPING_S:
            delete_outdated(self._database, self._config, time.time(), self._is_stopping)
            self._kept_at = time.monotonic()


def _has_budget(terms: KeyTerms) -> bool:
    return terms.budget_usd is not None or terms.budget_tokens is not None
