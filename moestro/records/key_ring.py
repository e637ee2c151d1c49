"""All keys in memory, so that finding one costs microseconds; another thread keeps them fresh.

While the database cannot be read, the keys last known go on to hold. Knows no limits. Next:
records.py.
"""

import hmac
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row

from moestro.api.key_terms import KeyTerms
from moestro.errors import ConfigError
from moestro.records.database import Database
from moestro.records.keys import hash_key, list_keys, read_stamp, read_terms

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key as it is known here."""

    digest: bytes
    terms: KeyTerms
    is_revoked: bool

    def is_usable(self, now: float) -> bool:
        """Tell whether it opens anything at a moment."""
        expires_at = self.terms.expires_at
        return not self.is_revoked and (expires_at is None or now < expires_at)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    identity: int | None = None
    stamp: int = -1
    by_digest: Mapping[bytes, KnownKey] = field(default_factory=dict)
    by_name: Mapping[str, KnownKey] = field(default_factory=dict)


class KeyRing:
    """Finds keys; `refresh` is for the thread that polls, everything else for requests."""

    def __init__(self) -> None:
        self._snapshot = _Snapshot()
        self._ignored: tuple[int, int] | None = None

    def __bool__(self) -> bool:
        """Tell whether a key is asked for at all: once there was one, always."""
        return bool(self._snapshot.by_name)

    def find_name(self, presented: Sequence[bytes]) -> str | None:
        """Return whose key is among those presented.

        Which digests are looked up is nobody's to choose, so that how long it takes tells nothing.
        """
        usable = (each for each in self._find_all(presented) if each.is_usable(time.time()))
        return next((each.terms.name for each in usable), None)

    def has_expired(self, presented: Sequence[bytes]) -> bool:
        """Tell whether a key among those presented opens nothing for its age alone."""
        now = time.time()
        known = self._find_all(presented)
        return any(not each.is_revoked and not each.is_usable(now) for each in known)

    def find(self, name: str) -> KnownKey | None:
        """Return the key that has a name, usable or not."""
        return self._snapshot.by_name.get(name)

    def _find_all(self, presented: Sequence[bytes]) -> Iterator[KnownKey]:
        snapshot = self._snapshot
        for key in presented:
            digest = hash_key(key)
            known = snapshot.by_digest.get(digest)
            if known is not None and hmac.compare_digest(digest, known.digest):
                yield known

    def names(self) -> list[str]:
        """Return all names."""
        return list(self._snapshot.by_name)

    def refresh(self, database: Database) -> bool:
        """Read the keys if any changed, and tell whether they were read."""
        known = self._snapshot
        with database.read() as connection:
            identity, stamp = read_stamp(connection)
            if (identity, stamp) in ((known.identity, known.stamp), self._ignored):
                return False
            rows = list_keys(connection)
        if known.identity not in (None, identity) or stamp < known.stamp:
            # A database that was deleted or put back knows less. Its silence must not open a door
            # or shut one: who wants its keys starts the server again.
            log.error(
                "%s: is another database than before, or an older copy: the keys known until now"
                " hold, until the server is started again",
                database.name,
            )
            self._ignored = identity, stamp
            return False
        keys = [key for row in rows if (key := _read_key(row)) is not None]
        self._snapshot = _Snapshot(
            identity=identity,
            stamp=stamp,
            by_digest={key.digest: key for key in keys},
            by_name={key.terms.name: key for key in keys},
        )
        return True


def _read_key(row: Row[Any]) -> KnownKey | None:
    try:
        digest = bytes.fromhex(row.digest)
        return KnownKey(digest, read_terms(row), row.revoked_at is not None)
    except (ConfigError, TypeError, ValueError) as error:
        # One row that somebody wrote by hand must not keep all others from being revoked.
        log.error("the key %r opens nothing, because its terms cannot be read: %s", row.name, error)
        return None
