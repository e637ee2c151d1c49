"""Records on their way to whoever writes them: a bounded queue and a thread that empties it.

Adding one never waits and never fails. While the database cannot be written the queue fills; what
it cannot hold is lost, and counted. Knows no requests. Next: writer.py.
"""

import logging
import secrets
import threading
from collections import deque

from moestro.errors import MoestroError
from moestro.records.counts import LedgerCounts
from moestro.records.decisions import Entry
from moestro.records.writer import BadRowError, LedgerBatch, Writer, encode_entry

log = logging.getLogger(__name__)

# What a batch costs beside its rows is shared by so many.
_BATCH = 1024
_LONGEST_PAUSE_S = 2.0


class Ledger:
    """Writes entries in the order in which they were added, each at most once."""

    def __init__(
        self, writer: Writer, counts: LedgerCounts, *, max_waiting: int, flush_s: float
    ) -> None:
        self._writer = writer
        self._counts = counts
        self._max_waiting = max_waiting
        self._flush_s = flush_s
        self._name = secrets.token_hex(8)
        self._waiting: deque[bytes] = deque()
        self._batch: list[bytes] = []
        self._batch_number = 0
        # So many of the next ones are written one by one, because one among them is refused.
        self._num_suspects = 0
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self.num_written = 0
        self.trouble: str | None = None

    @property
    def num_lost(self) -> int:
        """How many were lost, by all workers since the server's start."""
        return self._counts.num_lost

    @property
    def num_waiting(self) -> int:
        """How many are not written yet."""
        return len(self._batch) + len(self._waiting)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self, deadline_s: float) -> None:
        """Write what waits, for at most `deadline_s`, and end; what is left is lost."""
        self._is_stopping.set()
        if self._thread.is_alive():
            self._thread.join(deadline_s)
        # A thread that is not done by now still has its writer.
        if not self._thread.is_alive():
            self._writer.close()

    def add(self, entry: Entry) -> None:
        """Queue an entry, or count it as lost."""
        if self.num_waiting >= self._max_waiting:
            self._counts.turn_away()
            return
        try:
            # Bytes cost the collector of garbage nothing, and the thread that sends them little.
            encoded = encode_entry(entry)
        except BadRowError as error:
            log.error("a record was lost: %s", error)
            self._counts.turn_away()
            return
        self._counts.take()
        self._waiting.append(encoded)

    def _run(self) -> None:
        pause_s = self._flush_s
        while not (self._is_stopping.wait(pause_s) and not self.num_waiting):
            try:
                self._write_all()
                pause_s, self.trouble = self._flush_s, None
            except Exception as error:  # A worker loop: without it nothing is written any more.
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                self._note_trouble(error)
                if self._is_stopping.is_set():
                    self._lose_all()

    def _note_trouble(self, error: Exception) -> None:
        is_known = isinstance(error, MoestroError)
        shown = str(error) if is_known else f"{type(error).__name__}: {error}"
        if self.trouble is None:
            unknown = None if is_known else error
            log.error("records wait, and are lost if this goes on: %s", shown, exc_info=unknown)
        self.trouble = shown

    def _write_all(self) -> None:
        # What comes meanwhile waits for the next time: written at once, a batch would seldom have
        # more than a few rows, and each costs as much as forty rows do.
        num_left = self.num_waiting
        while num_left > 0 and self.num_waiting:
            # A batch in doubt is tried again as it was, or its number would stand for another one.
            if not self._batch:
                size = 1 if self._num_suspects else min(_BATCH, len(self._waiting))
                self._batch = [self._waiting.popleft() for _ in range(size)]
                self._num_suspects = max(0, self._num_suspects - size)
            num_left -= len(self._batch)
            self._write_batch()
            self._batch = []

    def _write_batch(self) -> None:
        batch = LedgerBatch(self._name, self._batch_number + 1, self._batch)
        try:
            self._writer.write(batch)
        except BadRowError as error:
            if len(self._batch) == 1:
                log.error("a record was lost: %s", error)
                self._counts.give_up(1)
            else:
                self._waiting.extendleft(reversed(self._batch))
                self._num_suspects = len(self._batch)
            return
        self._batch_number = batch.number
        self.num_written += len(self._batch)
        self._counts.settle(len(self._batch))

    def _lose_all(self) -> None:
        self._counts.give_up(self.num_waiting)
        self._waiting.clear()
        self._batch = []
