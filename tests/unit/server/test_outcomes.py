"""POST /v1/outcomes: what is kept, and what is said of what cannot be. Next: test_app.py."""

import hashlib
from typing import Any

import httpx
import pytest

from moestro.api.outcome import PostedOutcome
from moestro.backends.scripted import ScriptedBackend
from moestro.errors import DataError, MoestroError, StorageError
from moestro.server import outcomes
from moestro.server.app import build_app
from moestro.server.config import ServerConfig
from moestro.server.keys import KeysConfig
from tests.unit.server.asgi import ask

SCORED = {"request_id": "r-1", "score": 0.5}


class ScriptedBook:
    """Keeps outcomes in memory, or fails."""

    def __init__(self, error: MoestroError | None = None) -> None:
        self.kept: list[PostedOutcome] = []
        self._error = error

    async def add(self, outcome: PostedOutcome) -> int:
        if self._error is not None:
            raise self._error
        self.kept.append(outcome)
        return len(self.kept)


def post(book: ScriptedBook, body: Any, **fields: Any) -> httpx.Response:
    digest = hashlib.sha256(b"secret").hexdigest()
    config = ServerConfig(keys=KeysConfig(allowed={"alice": f"sha256:{digest}"}))
    app = build_app(ScriptedBackend(), config)
    app.include_router(outcomes.routes(book))
    headers = {"authorization": "Bearer secret"}
    return ask(app, "POST", "/v1/outcomes", **{"json": body, "headers": headers, **fields})


def test_a_posted_outcome_is_kept_with_its_keys_name() -> None:
    book = ScriptedBook()
    whole = {**SCORED, "model": "small", "strongest_score": 1, "note": "brief"}
    answers = [post(book, body) for body in (SCORED, whole)]
    assert [answer.json() for answer in answers] == [
        {"id": 1, "object": "outcome"},
        {"id": 2, "object": "outcome"},
    ]
    first, other = book.kept
    assert first == PostedOutcome(request_id="r-1", score=0.5, caller="alice")
    assert (other.model, other.strongest_score, other.note) == ("small", 1, "brief")


def test_without_a_key_nothing_is_kept() -> None:
    book = ScriptedBook()
    assert post(book, SCORED, headers={}).status_code == 401
    assert not book.kept


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"score": 1.5}, "score"),
        ({"score": -0.1}, "score"),
        ({"score": "good"}, "score"),
        ({"score": True}, "score"),
        ({"strongest_score": 2}, "strongest_score"),
        ({"request_id": ""}, "request_id"),
        ({"note": "x" * 2001}, "note"),
        ({"scor": 1}, "scor"),
        ({"caller": "bob"}, "caller"),
    ],
)
def test_what_cannot_be_is_a_400_that_names_it(change: dict[str, Any], named: str) -> None:
    book = ScriptedBook()
    answer = post(book, {**SCORED, **change})
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]
    assert not book.kept


def test_a_field_that_there_is_not_is_said_to_be_none() -> None:
    message = post(ScriptedBook(), {"scores": {"small": 1}}).json()["error"]["message"]
    assert message == "scores is no field here: correct its name or leave it out"


def test_a_lost_database_is_a_503_to_be_tried_again() -> None:
    answer = post(ScriptedBook(StorageError("the disk is full")), SCORED)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    message = answer.json()["error"]["message"]
    assert message == "the outcome was not kept: the disk is full"


def test_what_the_book_refuses_is_the_callers_to_change() -> None:
    answer = post(ScriptedBook(DataError("score is odd")), SCORED)
    assert answer.status_code == 400
    assert "score is odd" in answer.json()["error"]["message"]


def test_the_document_names_each_status_that_an_outcome_may_get() -> None:
    app = build_app(ScriptedBackend())
    app.include_router(outcomes.routes(ScriptedBook()))
    document = ask(app, "GET", "/openapi.json").json()
    named = document["paths"]["/v1/outcomes"]["post"]["responses"].keys()
    assert named >= {"200", "400", "401", "403", "408", "413", "415", "429", "431", "503"}
