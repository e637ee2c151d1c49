"""Answers given again, for a worker's event loop: the database's part runs in threads.

A database that is in trouble is no reason to refuse a request or to let it wait: it is then asked
as if nothing were kept. Next: answers.py.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from moestro.errors import StorageError
from moestro.records.answers import (
    KeptAnswer,
    count_answers,
    find_answer,
    keep_answer,
    name_question,
    note_hits,
)
from moestro.records.config import CacheConfig
from moestro.records.database import Database

# What an answer that was kept is marked with.
HIT_HEADER = ("x-moestro-cache", "hit")
# Longer than a database that is well takes to find a row, and no reason to do without its answer.
_PATIENCE_S = 0.5
# How long one that failed is not asked.
_REST_S = 2.0


class Remembered:
    """Finds and keeps answers; counts in this process how often each happened."""

    def __init__(self, database: Database, config: CacheConfig) -> None:
        self._database = database
        self._config = config
        # Hits that the database has not been told of: finding must not have to write.
        self._untold: Counter[str] = Counter()
        self._rests_until = 0.0
        self.num_hits = 0
        self.num_misses = 0
        self.num_faults = 0

    def name(
        self, path: str, body: Mapping[str, Any], model: str, caller: str | None
    ) -> str | None:
        """Return the name of a question, None where its answer must not be given twice."""
        return name_question(path, body, model, caller, self._config)

    async def find(self, name: str) -> KeptAnswer | None:
        """Return the answer to a question of this name, marked as kept, or None."""
        if not self._may_ask():
            return None
        try:
            async with asyncio.timeout(_PATIENCE_S):
                answer = await asyncio.to_thread(self._find, name)
        except (StorageError, TimeoutError):
            self._note_fault()
            return None
        self._rests_until = 0.0
        if answer is None:
            self.num_misses += 1
            return None
        self.num_hits += 1
        self._untold[name] += 1
        header, value = HIT_HEADER
        return KeptAnswer(
            body=answer.body, headers={**answer.headers, header: value}, usage=answer.usage
        )

    async def keep(self, name: str, answer: KeptAnswer) -> bool:
        """Keep an answer that came whole; tell whether it was kept."""
        if not self._may_ask():
            return False
        try:
            is_kept = await asyncio.to_thread(self._keep, name, answer)
        except StorageError:
            self._note_fault()
            return False
        self._rests_until = 0.0
        return is_kept

    def flush(self) -> None:
        """Tell the database what was given again; for the thread that polls."""
        if self._untold:
            untold, self._untold = self._untold, Counter()
            with self._database.write() as connection:
                note_hits(connection, untold)

    def counts(self) -> dict[str, int]:
        """Return what happened in this process."""
        return {"hits": self.num_hits, "misses": self.num_misses, "faults": self.num_faults}

    async def stored(self) -> dict[str, int]:
        """Return how many are kept, by all processes, with their bytes and hits."""

        def read() -> dict[str, int]:
            with self._database.read() as connection:
                return count_answers(connection)

        return await asyncio.to_thread(read)

    def _may_ask(self) -> bool:
        now = time.monotonic()
        if now < self._rests_until:
            self.num_faults += 1
            return False
        if self._rests_until:
            # One tries whether it is well again; the others do not wait for what comes of it.
            self._rests_until = now + _REST_S
        return True

    def _note_fault(self) -> None:
        self.num_faults += 1
        self._rests_until = time.monotonic() + _REST_S

    def _find(self, name: str) -> KeptAnswer | None:
        with self._database.read() as connection:
            return find_answer(connection, name, self._config)

    def _keep(self, name: str, answer: KeptAnswer) -> bool:
        with self._database.write() as connection:
            return keep_answer(connection, name, answer, self._config)
