"""Users' keys in the database: made, listed, changed, revoked. None is kept in clear.

A plain SHA-256 is enough because keys are long and random: nobody can try them all. Knows no
requests. Next: key_ring.py.
"""

import hashlib
import json
import secrets
import time
from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, Row, select, update

from moestro.api.key_terms import KeyTerms
from moestro.errors import ConfigError
from moestro.records.schema import KEYS, STAMPS

_KEY_BYTES = 32
_TERMS = tuple(field.name for field in fields(KeyTerms))


def hash_key(key: bytes) -> bytes:
    """Return what is kept of a key."""
    return hashlib.sha256(key).digest()


def add_key(connection: Connection, terms: KeyTerms) -> str:
    """Make a key and return it: this is the only time that it is seen.

    A revoked key's name may be used again; what it spent stays spent.
    """
    key = f"mo-{secrets.token_urlsafe(_KEY_BYTES)}"
    known = _find(connection, terms.name)
    values = {
        **_to_row(terms),
        "digest": hash_key(key.encode()).hex(),
        "created_at": time.time(),
        "revoked_at": None,
    }
    if known is None:
        connection.execute(KEYS.insert().values(values))
    elif known.revoked_at is None:
        raise ConfigError(
            f"a key named {terms.name} exists: choose another name, or revoke that one first"
        )
    else:
        connection.execute(update(KEYS).where(KEYS.c.name == terms.name).values(values))
    _stamp(connection)
    return key


def change_key(connection: Connection, terms: KeyTerms) -> None:
    """Give a known key other terms."""
    _require(connection, terms.name)
    connection.execute(update(KEYS).where(KEYS.c.name == terms.name).values(_to_row(terms)))
    _stamp(connection)


def revoke_key(connection: Connection, name: str) -> None:
    """End a key for ever."""
    if _require(connection, name).revoked_at is None:
        connection.execute(update(KEYS).where(KEYS.c.name == name).values(revoked_at=time.time()))
        _stamp(connection)


def list_keys(connection: Connection) -> list[Row[Any]]:
    """Return all rows, by name."""
    return list(connection.execute(select(KEYS).order_by(KEYS.c.name)))


def find_terms(connection: Connection, name: str) -> KeyTerms:
    """Return a known key's terms."""
    return read_terms(_require(connection, name))


def read_stamp(connection: Connection) -> tuple[int, int]:
    """Return which database it is, and a number that grows whenever a key changes."""
    stamps = {row.name: row.value for row in connection.execute(select(STAMPS))}
    return stamps["identity"], stamps["keys"]


def read_terms(row: Row[Any]) -> KeyTerms:
    """Return a row's terms."""
    values = {name: getattr(row, name) for name in _TERMS}
    models = values["allowed_models"]
    values["allowed_models"] = None if models is None else tuple(json.loads(models))
    return KeyTerms(**values)


def _to_row(terms: KeyTerms) -> dict[str, Any]:
    values = {name: getattr(terms, name) for name in _TERMS}
    models = terms.allowed_models
    values["allowed_models"] = None if models is None else json.dumps(models)
    return values


def _find(connection: Connection, name: str) -> "Row[Any] | None":
    return connection.execute(select(KEYS).where(KEYS.c.name == name)).one_or_none()


def _require(connection: Connection, name: str) -> Row[Any]:
    row = _find(connection, name)
    if row is None:
        raise ConfigError(
            f"there is no key named {name}: `moestro keys list` shows those there are"
        )
    return row


def _stamp(connection: Connection) -> None:
    connection.execute(
        update(STAMPS).where(STAMPS.c.name == "keys").values(value=STAMPS.c.value + 1)
    )
