"""Users' keys: shown once, found in memory, gone soon after they were revoked."""

import asyncio
import hmac
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from sqlalchemy import delete, select, update

from moestro.api.key_terms import KeyTerms
from moestro.errors import ConfigError
from moestro.records import keys
from moestro.records.database import Database
from moestro.records.key_ring import KeyRing
from moestro.records.records import Records
from moestro.records.schema import KEYS, STAMPS
from moestro.records.view import View

TERMS = KeyTerms(
    name="alice",
    budget_usd=5.0,
    budget_tokens=2**40,
    budget_period="day",
    requests_per_minute=60,
    tokens_per_minute=1000,
    concurrent_requests=2,
    allowed_models=("small", "large"),
    is_admin=True,
    expires_at=4e9,
)


def add(database: Database, terms: KeyTerms) -> bytes:
    with database.write() as connection:
        return keys.add_key(connection, terms).encode()


def test_a_key_is_kept_as_its_hash_only(database: Database) -> None:
    key = add(database, TERMS)
    with database.read() as connection:
        (row,) = keys.list_keys(connection)
    assert key.decode() not in repr(row)
    assert row.digest == keys.hash_key(key).hex()
    assert len(key) > 40


def test_terms_are_read_as_they_were_written(database: Database) -> None:
    add(database, TERMS)
    with database.read() as connection:
        assert keys.find_terms(connection, "alice") == TERMS


def test_two_keys_differ(database: Database) -> None:
    assert add(database, TERMS) != add(database, KeyTerms(name="bob"))


def test_a_name_is_taken_until_its_key_is_revoked(database: Database) -> None:
    first = add(database, TERMS)
    with pytest.raises(ConfigError, match="a key named alice exists"):
        add(database, TERMS)
    with database.write() as connection:
        keys.revoke_key(connection, "alice")
        keys.revoke_key(connection, "alice")
    second = add(database, TERMS)
    ring = KeyRing()
    ring.refresh(database)
    assert ring.find_name([first]) is None
    assert ring.find_name([b"other", second]) == "alice"


def test_an_unknown_name_is_told(database: Database) -> None:
    with database.write() as connection:
        for act in (
            lambda: keys.revoke_key(connection, "bob"),
            lambda: keys.change_key(connection, KeyTerms(name="bob")),
        ):
            with pytest.raises(ConfigError, match="no key named bob"):
                act()


def test_nobody_is_asked_for_a_key_before_there_is_one(database: Database) -> None:
    ring = KeyRing()
    ring.refresh(database)
    assert not ring
    add(database, TERMS)
    assert ring.refresh(database)
    assert ring
    assert not ring.refresh(database)


def test_an_expired_key_opens_nothing_and_its_holder_hears_why(database: Database) -> None:
    key = add(database, KeyTerms(name="late", expires_at=time.time() - 1))
    fresh = add(database, TERMS)
    ring = KeyRing()
    ring.refresh(database)
    assert ring.find_name([key]) is None
    assert ring.has_expired([b"other", key])
    assert not ring.has_expired([b"other", fresh])
    with database.write() as connection:
        keys.revoke_key(connection, "late")
    ring.refresh(database)
    assert not ring.has_expired([key])


def test_a_key_is_compared_in_constant_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = add(database, TERMS)
    ring = KeyRing()
    ring.refresh(database)
    compared = []

    def compare(first: bytes, second: bytes) -> bool:
        compared.append(second)
        return hmac.compare_digest(first, second)

    monkeypatch.setattr("moestro.records.key_ring.hmac", SimpleNamespace(compare_digest=compare))
    assert ring.find_name([key]) == "alice"
    assert compared == [keys.hash_key(key)]


def test_a_running_worker_learns_of_keys_and_of_their_end(
    start: Callable[..., Records], wait_until: Callable[..., None]
) -> None:
    records = start()
    key = add(records.database, TERMS)
    wait_until(lambda: records.find_name([key]) == "alice")
    with records.database.write() as connection:
        keys.change_key(connection, KeyTerms(name="alice"))
    wait_until(lambda: records.allowed_models("alice") is None)
    with records.database.write() as connection:
        keys.revoke_key(connection, "alice")
    began = time.monotonic()
    wait_until(lambda: records.find_name([key]) is None)
    assert time.monotonic() - began < 10


def test_what_cannot_be_read_is_shown_and_looked_at_again(
    start: Callable[..., Records],
    wait_until: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records = start()
    with monkeypatch.context() as patch:
        patch.setattr(KeyRing, "refresh", lambda ring, database: len(5))  # type: ignore[arg-type]
        wait_until(lambda: "TypeError" in (records.poll.trouble or ""))
    key = add(records.database, TERMS)
    wait_until(lambda: records.find_name([key]) == "alice")
    wait_until(lambda: records.poll.trouble is None)


@pytest.mark.parametrize("stamps", [{"keys": 0}, {"identity": 5}, {"identity": 5, "keys": 99}])
def test_a_database_that_forgot_its_keys_opens_no_door(
    database: Database, caplog: pytest.LogCaptureFixture, stamps: dict[str, int]
) -> None:
    key = add(database, TERMS)
    ring = KeyRing()
    ring.refresh(database)
    with database.write() as connection:
        connection.execute(delete(KEYS))
        for name, value in stamps.items():
            connection.execute(update(STAMPS).where(STAMPS.c.name == name).values(value=value))
    for _ in range(3):
        assert not ring.refresh(database)
    assert ring
    assert ring.find_name([key]) == "alice"
    assert len(caplog.records) == 1
    assert "an older copy" in caplog.text


def test_one_row_that_cannot_be_read_stops_no_other(database: Database) -> None:
    for name in ("alice", "bob", "dave", "carol"):
        key = add(database, KeyTerms(name=name))
    with database.write() as connection:
        connection.execute(update(KEYS).where(KEYS.c.name == "alice").values(budget_usd=-1.0))
        connection.execute(update(KEYS).where(KEYS.c.name == "bob").values(allowed_models="["))
        connection.execute(update(KEYS).where(KEYS.c.name == "dave").values(allowed_models="5"))
    ring = KeyRing()
    ring.refresh(database)
    assert ring.names() == ["carol"]
    assert ring.find_name([key]) == "carol"


def test_every_change_is_stamped(database: Database) -> None:
    stamps = []
    add(database, TERMS)
    with database.write() as connection:
        for act in (
            lambda: None,
            lambda: keys.change_key(connection, TERMS),
            lambda: keys.revoke_key(connection, "alice"),
        ):
            act()
            stamps.append(keys.read_stamp(connection)[1])
        row = connection.execute(select(KEYS)).one()
    assert stamps == [1, 2, 3]
    assert row.revoked_at is not None


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"name": " "}, "name is"),
        ({"name": "a\nb"}, "printable"),
        ({"name": "x" * 65}, "1 to 64"),
        ({"name": "a", "budget_usd": -1.0}, "budget_usd is -1"),
        ({"name": "a", "budget_usd": float("inf")}, "budget_usd is inf"),
        ({"name": "a", "requests_per_minute": 0}, "requests_per_minute is 0"),
        ({"name": "a", "budget_period": "week"}, "one of day, month, total"),
    ],
)
def test_impossible_terms_are_refused(terms: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        KeyTerms(**terms)  # type: ignore[arg-type]


def test_pages_change_keys_too(start: Callable[..., Records]) -> None:
    view = View(start())
    key = asyncio.run(view.add_key(KeyTerms(name="alice")))
    asyncio.run(view.change_key(TERMS))
    (shown,) = asyncio.run(view.keys())
    assert (shown.terms, shown.is_usable) == (TERMS, True)
    assert key not in repr(shown)
    asyncio.run(view.revoke_key("alice"))
    (shown,) = asyncio.run(view.keys())
    assert not shown.is_usable
    assert shown.revoked_at is not None
    assert view.health().is_reachable
