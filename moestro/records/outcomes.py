"""Scores of answers, in one order for all workers, and states that advance along it exactly once.

An outcome's number is given within the transaction that writes it, so that numbers appear in their
order: who has seen one has seen all before it. Knows no monitors. Next: records.py.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, select, update
from sqlalchemy.exc import IntegrityError

from moestro.api.record_view import ScoredOutcome, ScoreKind
from moestro.errors import CapacityError, DataError
from moestro.records.database import Database
from moestro.records.schema import OUTCOMES, STAMPS, STATES

State = dict[str, Any]
Step = Callable[[State, ScoredOutcome], State]
Change = Callable[[State], State]

_MOST = 1000
_TRIES = 20
_LONGEST_NOTE = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class NewOutcome:
    """A score as it arrives; with `strongest_score` it is an audit."""

    request_id: str
    score: float
    caller: str | None = None
    model: str | None = None
    strongest_score: float | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        for name in ("score", "strongest_score"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise DataError(f"{name} is {value}: it must be 0 to 1")
        if self.note is not None and len(self.note) > _LONGEST_NOTE:
            raise DataError(f"note has {len(self.note)} characters, limit {_LONGEST_NOTE}")


def append_outcome(connection: Connection, outcome: NewOutcome) -> int:
    """Write an outcome and return its number."""
    # Whoever comes second waits here until the first has committed.
    number: int = connection.execute(
        update(STAMPS)
        .where(STAMPS.c.name == "outcomes")
        .values(value=STAMPS.c.value + 1)
        .returning(STAMPS.c.value)
    ).scalar_one()
    values = {name: getattr(outcome, name) for name in outcome.__slots__}
    kind = "score" if outcome.strongest_score is None else "audit"
    connection.execute(OUTCOMES.insert().values(id=number, at=time.time(), kind=kind, **values))
    return number


def outcomes_since(
    connection: Connection, number: int, *, kind: ScoreKind | None = None, limit: int = _MOST
) -> list[ScoredOutcome]:
    """Return those with greater numbers, oldest first."""
    statement = select(OUTCOMES).where(OUTCOMES.c.id > number).order_by(OUTCOMES.c.id)
    if kind is not None:
        statement = statement.where(OUTCOMES.c.kind == kind)
    return [_to_outcome(row) for row in connection.execute(statement.limit(limit))]


def find_outcomes(
    connection: Connection, kind: ScoreKind | None, before: int | None, limit: int
) -> list[ScoredOutcome]:
    """Return those with lower numbers than `before`, newest first."""
    statement = select(OUTCOMES).order_by(OUTCOMES.c.id.desc())
    if kind is not None:
        statement = statement.where(OUTCOMES.c.kind == kind)
    if before is not None:
        statement = statement.where(OUTCOMES.c.id < before)
    rows = connection.execute(statement.limit(max(1, min(limit, _MOST))))
    return [_to_outcome(row) for row in rows]


def delete_older(connection: Connection, before: float, limit: int) -> int:
    """Delete at most `limit` of the oldest that came before a moment; return how many."""
    oldest = (
        select(OUTCOMES.c.id).where(OUTCOMES.c.at < before).order_by(OUTCOMES.c.id).limit(limit)
    )
    return connection.execute(delete(OUTCOMES).where(OUTCOMES.c.id.in_(oldest))).rowcount


def load_state(connection: Connection, name: str) -> tuple[dict[str, Any], int]:
    """Return a state and its version, an empty one and 0 at first."""
    row = connection.execute(select(STATES).where(STATES.c.name == name)).one_or_none()
    return ({}, 0) if row is None else (json.loads(row.value), row.version)


def save_state(
    connection: Connection, name: str, value: Mapping[str, Any], expected_version: int
) -> bool:
    """Replace a state if nobody else has since `expected_version`; tell whether it was so."""
    values = {"value": json.dumps(value), "version": expected_version + 1, "at": time.time()}
    if expected_version == 0:
        try:
            with connection.begin_nested():
                connection.execute(STATES.insert().values(name=name, **values))
        except IntegrityError:
            return False
        return True
    is_same = (STATES.c.name == name) & (STATES.c.version == expected_version)
    return connection.execute(update(STATES).where(is_same).values(values)).rowcount == 1


def advance(
    database: Database,
    name: str,
    step: Step,
    *,
    kind: ScoreKind | None = None,
    is_from_now: bool = False,
) -> State:
    """Apply `step` to a state for each outcome that it has not seen, once, and return it.

    A state that is new has seen none, or with `is_from_now` all that there are.
    `step` takes the state and an outcome and returns the next state; it may be called again for
    an outcome when another worker was faster, and then starts from what that one left.
    """
    for _ in range(_TRIES):
        with database.read() as connection:
            stored, version = load_state(connection, name)
            unseen = outcomes_since(connection, stored.get("seen", 0), kind=kind)
        if is_from_now and not version:
            with database.write() as connection:
                save_state(connection, name, {"seen": _last_number(connection)}, version)
            continue
        if not unseen:
            return dict(stored.get("state", {}))
        state = dict(stored.get("state", {}))
        for outcome in unseen:
            state = step(state, outcome)
        with database.write() as connection:
            save_state(connection, name, {"seen": unseen[-1].id, "state": state}, version)
    raise CapacityError(f"the state {name} is behind by more than {_TRIES * _MOST} outcomes")


def _last_number(connection: Connection) -> int:
    number: int = connection.execute(
        select(STAMPS.c.value).where(STAMPS.c.name == "outcomes")
    ).scalar_one()
    return number


def find_state(database: Database, name: str) -> State:
    """Return a state as it is now, an empty one at first."""
    with database.read() as connection:
        return load_state(connection, name)[0]


def change_state(database: Database, name: str, change: Change) -> State:
    """Apply `change` to a state that workers share, and return it.

    It may be called again when another worker was faster, and then starts from what that one left.
    """
    for _ in range(_TRIES):
        with database.write() as connection:
            found, version = load_state(connection, name)
            state = change(found)
            if save_state(connection, name, state, version):
                return state
    raise CapacityError(f"the state {name} was changed by others {_TRIES} times meanwhile")


def _to_outcome(row: Row[Any]) -> ScoredOutcome:
    return ScoredOutcome(**row._mapping)
