"""Answers given again: only where the same was asked, by whom it may be had, and not for ever."""

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import update

from moestro.records import answers, retention
from moestro.records.answers import KeptAnswer, name_question
from moestro.records.config import CacheConfig, RecordsConfig
from moestro.records.database import Database
from moestro.records.records import Records
from moestro.records.remembered import Remembered
from moestro.records.schema import ANSWERS
from tests.unit.records.made import make_record

ON = CacheConfig(enabled=True)
PATH = "/v1/chat/completions"
BODY = {"model": "auto", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


def name(body: dict[str, Any], config: CacheConfig = ON, **changes: str) -> str | None:
    asked = {"path": PATH, "model": "small", "caller": "alice", **changes}
    return name_question(asked["path"], body, asked["model"], asked["caller"], config)


@pytest.mark.parametrize(
    ("body", "is_named"),
    [
        (BODY, True),
        ({**BODY, "temperature": 0.0}, True),
        ({**BODY, "temperature": 0.7}, False),
        ({**BODY, "temperature": 0.7, "seed": 3}, True),
        ({"model": "auto", "messages": []}, False),
        ({"model": "auto", "messages": [], "seed": None}, False),
    ],
)
def test_only_deterministic_requests_have_a_name(body: dict[str, Any], is_named: bool) -> None:
    assert (name(body) is not None) == is_named
    assert name(body, CacheConfig()) is None


@pytest.mark.parametrize(
    "change",
    [{"stream": True}, {"max_tokens": 1}, {"messages": []}, {"tools": []}, {"unknown": 1}],
)
def test_whatever_changes_an_answer_changes_its_name(change: dict[str, Any]) -> None:
    assert name({**BODY, **change}) != name(BODY)


@pytest.mark.parametrize(
    "change", [{"path": "/v1/completions"}, {"model": "large"}, {"caller": "bob"}]
)
def test_another_path_model_or_key_is_another_question(change: dict[str, str]) -> None:
    assert name(BODY, **change) != name(BODY)


def test_what_changes_no_answer_changes_no_name() -> None:
    assert name({**BODY, "user": "x", "metadata": {"a": "b"}}) == name(BODY)
    assert name(dict(reversed(BODY.items()))) == name(BODY)
    odd = {**BODY, "messages": "\ud800"}
    assert name(odd) is not None


def test_keys_share_answers_only_where_the_operator_says_so() -> None:
    shared = CacheConfig(enabled=True, is_shared=True)
    assert name(BODY, shared, caller="bob") == name(BODY, shared)


def test_an_answer_comes_back_as_the_same_bytes_and_is_marked(
    start: Callable[..., Records], wait_until: Callable[..., None]
) -> None:
    records = start(settings={"cache": ON})
    remembered = records.remembered
    question = remembered.name(PATH, BODY, "small", "alice")
    assert question is not None
    body = b"data: {}\n\n\x00\xff"
    kept = KeptAnswer(body=body, headers={"content-type": "text/event-stream"}, usage={"total": 3})

    async def ask_twice() -> list[KeptAnswer | None]:
        before = await remembered.find(question)
        assert await remembered.keep(question, kept)
        assert await remembered.keep(question, kept)
        return [before, await remembered.find(question)]

    before, found = asyncio.run(ask_twice())
    assert before is None
    assert found is not None
    assert found.body == body
    assert found.headers == {"content-type": "text/event-stream", "x-moestro-cache": "hit"}
    assert found.usage == {"total": 3}
    assert records.health().cache == {"hits": 1, "misses": 1, "faults": 0}
    wait_until(lambda: not remembered._untold)
    wait_until(lambda: asyncio.run(remembered.stored())["hits"] == 1)
    stored = asyncio.run(remembered.stored())
    assert stored == {"answers": 1, "bytes": len(body), "hits": 1}


def test_those_unused_for_longest_make_room(database: Database) -> None:
    config = CacheConfig(enabled=True, max_bytes=300)
    with database.write() as connection:
        for each in ("a", "b", "c"):
            assert answers.keep_answer(connection, each, KeptAnswer(body=bytes(100)), config)
        answers.note_hits(connection, {"a": 1})
        assert answers.keep_answer(connection, "d", KeptAnswer(body=bytes(150)), config)
        found = {each: answers.find_answer(connection, each, config) for each in "abcd"}
    assert [each for each, answer in found.items() if answer is not None] == ["a", "d"]


def test_what_is_too_large_is_not_kept(database: Database) -> None:
    config = CacheConfig(enabled=True, max_answer_bytes=10)
    with database.write() as connection:
        assert not answers.keep_answer(connection, "a", KeptAnswer(body=bytes(11)), config)
        assert answers.find_answer(connection, "a", config) is None


def test_what_is_too_old_is_not_given(database: Database) -> None:
    with database.write() as connection:
        answers.keep_answer(connection, "a", KeptAnswer(body=b"x"), ON)
        connection.execute(update(ANSWERS).values(created_at=time.time() - ON.max_age_s - 1))
        assert answers.find_answer(connection, "a", ON) is None


def test_a_database_in_trouble_is_as_if_nothing_were_kept(
    start: Callable[..., Records], monkeypatch: pytest.MonkeyPatch
) -> None:
    records = start(settings={"cache": ON})
    monkeypatch.setattr(records.remembered._database, "_open", _refuse)
    assert asyncio.run(records.remembered.find("a")) is None
    assert not asyncio.run(records.remembered.keep("a", KeptAnswer(body=b"x")))
    assert records.remembered.counts()["faults"] == 2
    monkeypatch.undo()


def test_the_old_is_deleted_in_steps_and_usage_stays(
    start: Callable[..., Records], wait_until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_STEP", 3)
    monkeypatch.setattr(retention, "_PAUSE_S", 0.0)
    records = start(is_keeper=False)
    now = 1_900_000_000.0
    for number in range(8):
        records.finish(make_record(number))
    records.finish(make_record(9, began_at=now - 86_400))
    wait_until(lambda: records.health().written_records == 9)
    with records.database.write() as connection:
        answers.keep_answer(connection, "a", KeptAnswer(body=b"x"), ON)
    config = RecordsConfig(url=records.config.url, retention_days=30)
    stop = records.poll._is_stopping
    assert retention.delete_outdated(records.database, config, now, stop) == 9
    with records.database.read() as connection:
        left = connection.exec_driver_sql("SELECT request_id FROM moestro_decisions").all()
        used = connection.exec_driver_sql("SELECT sum(num_requests) FROM moestro_usage").scalar()
    assert [tuple(row) for row in left] == [("request-9",)]
    assert used == 9
    for_ever = RecordsConfig(url=records.config.url, retention_days=None)
    assert retention.delete_outdated(records.database, for_ever, now * 2, stop) == 0
    stop.set()
    assert retention.delete_outdated(records.database, config, now * 2, stop) == 0


def _refuse() -> None:
    from moestro.errors import StorageError

    raise StorageError("gone")


def test_a_database_that_says_nothing_delays_no_request() -> None:
    """Its host is there and its port is open, and that is all."""

    async def work(port: int) -> tuple[float, dict[str, int]]:
        config = RecordsConfig(
            url=f"postgresql+psycopg://user@127.0.0.1:{port}/records",
            cache=CacheConfig(enabled=True),
        )
        remembered = Remembered(Database(config), config.cache)
        began = time.monotonic()
        for _ in range(20):
            assert await remembered.find("name") is None
        took_s = time.monotonic() - began
        assert not await remembered.keep("name", KeptAnswer(body=b"x"))
        return took_s, remembered.counts()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        took_s, counts = asyncio.run(work(silent.getsockname()[1]))
    assert took_s < 2.0
    assert counts == {"hits": 0, "misses": 0, "faults": 21}
