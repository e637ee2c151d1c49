"""What is too old is deleted, in steps so small that nobody waits long for any of them.

Usage by day stays: it is small, and bills are made of it. Next: decisions.py.
"""

import threading
from collections.abc import Callable

from sqlalchemy import Connection, delete

from moestro.records import answers, decisions, outcomes
from moestro.records.config import RecordsConfig
from moestro.records.database import Database
from moestro.records.schema import WRITERS

_STEP = 500
_PAUSE_S = 0.02
_DAY_S = 86_400.0


def delete_outdated(
    database: Database, config: RecordsConfig, now: float, is_stopping: threading.Event
) -> int:
    """Delete all that is older than the configuration keeps, and return how many rows."""
    count = 0
    if config.retention_days is not None:
        before = now - config.retention_days * _DAY_S
        count += _in_steps(database, is_stopping, before, decisions.delete_older)
        count += _in_steps(database, is_stopping, before, outcomes.delete_older)
    count += _in_steps(database, is_stopping, now - config.cache.max_age_s, answers.delete_older)
    with database.write() as connection:
        answers.shrink(connection, config.cache.max_bytes)
        connection.execute(delete(WRITERS).where(WRITERS.c.at < now - 2 * _DAY_S))
    return count


def _in_steps(
    database: Database,
    is_stopping: threading.Event,
    before: float,
    delete_some: Callable[[Connection, float, int], int],
) -> int:
    count = 0
    while not is_stopping.wait(_PAUSE_S):
        with database.write() as connection:
            deleted = delete_some(connection, before, _STEP)
        count += deleted
        if deleted < _STEP:
            break
    return count
