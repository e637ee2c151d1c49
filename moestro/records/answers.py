"""Answers kept to be given again, by the content of what was asked; off unless it is asked for.

Only what is asked to be deterministic has a name here: a temperature of 0, or a seed, which asks
for the same answer again. An answer is kept as the bytes that the client got, streamed or whole.
Knows no requests under way. Next: records.py.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from moestro.records.config import CacheConfig
from moestro.records.schema import ANSWERS

# Who asks and why changes no answer.
_IRRELEVANT = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})
_SHRINK_STEP = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptAnswer:
    """An answer's bytes, its headers, and what it used when it was made."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    usage: Mapping[str, Any] | None = None


def name_question(
    path: str, body: Mapping[str, Any], model: str, caller: str | None, config: CacheConfig
) -> str | None:
    """Return the name of what is asked, None if its answer must not be given twice.

    `model` is the one that answers, not `auto`: a policy may change its mind.
    """
    is_certain = body.get("temperature") == 0 or body.get("seed") is not None
    if not (config.enabled and is_certain):
        return None
    asked = {name: value for name, value in body.items() if name not in _IRRELEVANT}
    owner = "" if config.is_shared else caller or ""
    content = json.dumps([path, model, owner, asked], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def find_answer(connection: Connection, name: str, config: CacheConfig) -> KeptAnswer | None:
    """Return an answer that is kept and not too old."""
    row = connection.execute(select(ANSWERS).where(ANSWERS.c.digest == name)).one_or_none()
    if row is None or time.time() - row.created_at > config.max_age_s:
        return None
    usage = None if row.usage is None else json.loads(row.usage)
    return KeptAnswer(body=bytes(row.body), headers=json.loads(row.headers), usage=usage)


def note_hits(connection: Connection, hits: Mapping[str, int]) -> None:
    """Note that answers were just given again, and how often."""
    for name, count in sorted(hits.items()):
        changed = {"used_at": time.time(), "num_hits": ANSWERS.c.num_hits + count}
        connection.execute(update(ANSWERS).where(ANSWERS.c.digest == name).values(changed))


def keep_answer(connection: Connection, name: str, answer: KeptAnswer, config: CacheConfig) -> bool:
    """Keep a whole answer if it is not too large; those unused for longest make room."""
    if len(answer.body) > min(config.max_answer_bytes, config.max_bytes):
        return False
    now = time.time()
    values = {
        "created_at": now,
        "used_at": now,
        "num_hits": 0,
        "size": len(answer.body),
        "headers": json.dumps(dict(answer.headers)),
        "body": answer.body,
        "usage": None if answer.usage is None else json.dumps(dict(answer.usage)),
    }
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = kind.insert(ANSWERS).values(digest=name, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["digest"], set_=values))
    shrink(connection, config.max_bytes)
    return True


def shrink(connection: Connection, max_bytes: int) -> None:
    """Delete those unused for longest until the rest fits."""
    while _total_bytes(connection) > max_bytes:
        oldest = select(ANSWERS.c.digest).order_by(ANSWERS.c.used_at).limit(_SHRINK_STEP)
        rows = connection.execute(oldest.add_columns(ANSWERS.c.size)).all()
        surplus = _total_bytes(connection) - max_bytes
        gone = []
        for row in rows:
            if surplus > 0:
                gone.append(row.digest)
                surplus -= row.size
        connection.execute(delete(ANSWERS).where(ANSWERS.c.digest.in_(gone)))


def delete_older(connection: Connection, before: float, limit: int) -> int:
    """Delete at most `limit` that were made before a moment; return how many."""
    oldest = select(ANSWERS.c.digest).where(ANSWERS.c.created_at < before).limit(limit)
    return connection.execute(delete(ANSWERS).where(ANSWERS.c.digest.in_(oldest))).rowcount


def count_answers(connection: Connection) -> dict[str, int]:
    """Return how many are kept, their bytes, and how often they were given again."""
    row = connection.execute(
        select(
            func.count().label("answers"),
            func.coalesce(func.sum(ANSWERS.c.size), 0).label("bytes"),
            func.coalesce(func.sum(ANSWERS.c.num_hits), 0).label("hits"),
        ).select_from(ANSWERS)
    ).one()
    return {"answers": row.answers, "bytes": int(row.bytes), "hits": int(row.hits)}


def _total_bytes(connection: Connection) -> int:
    return int(connection.execute(select(func.coalesce(func.sum(ANSWERS.c.size), 0))).scalar_one())
