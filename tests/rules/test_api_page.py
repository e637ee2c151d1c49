"""docs/api.md: it names every route, header and code that there is, and its examples work.

Knows Markdown and curl by pattern only. Next: test_dependencies.py.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from moestro.api.outcome import PostedOutcome
from moestro.api.relay import Call, Reply
from moestro.backends.scripted import DEFAULT_CARD, ScriptedBackend
from moestro.server import outcomes
from moestro.server.app import Application, build_app
from moestro.server.config import ServerConfig
from moestro.server.keys import KeysConfig
from moestro.server.openapi import ANSWERS, describe
from tests.rules.tree import PACKAGE, ROOT, python_files
from tests.unit.server.asgi import ask

ADDRESS = "http://127.0.0.1:8000"
PAGE = (ROOT / "docs" / "api.md").read_text()
HEADING = re.compile(r"^### ((?:GET|POST) /\S*)$", re.M)
ROW = re.compile(r"^\| \[`((?:GET|POST) /\S*)`\]\(\S*\) \| .* \| (.*) \|$", re.M)
EXAMPLE = re.compile(r"^\$ (curl (?:.*\\\n)*.*)$", re.M)
HEADER_ROW = re.compile(r"^\| (`[a-z].*?) \| (?:both|server.*?|fleet) \|", re.M)
OPEN = "anybody"


class Book:
    """Outcomes, thrown away."""

    async def add(self, outcome: PostedOutcome) -> int:
        return 1


class EmbeddingServer:
    """What stands behind a fleet's model that embeds."""

    async def relay(self, call: Call) -> Reply | None:
        if call.path != "/v1/embeddings":
            return None
        return Reply(status=200, headers={"content-type": "application/json"}, body=b"{}")


def build_whole_app(keys: dict[str, str] | None = None) -> Application:
    """Build what answers the routes of one model's server and those of a fleet."""
    backend = ScriptedBackend("yes", cards=(replace(DEFAULT_CARD, id="demo"),))
    config = ServerConfig(keys=KeysConfig(allowed=keys or {}))
    app = build_app(backend, config, relay=EmbeddingServer())
    app.include_router(outcomes.routes(Book()))
    return app


APP = build_whole_app()


def test_the_page_has_the_routes_of_the_openapi_document_and_no_others() -> None:
    document = describe(APP)
    routes = {
        f"{method.upper()} {path}" for path, found in document["paths"].items() for method in found
    }
    assert routes | {"GET /docs", "GET /openapi.json"} == set(HEADING.findall(PAGE))


def test_the_table_of_endpoints_has_all_that_the_page_describes() -> None:
    assert sorted(route for route, _ in ROW.findall(PAGE)) == sorted(HEADING.findall(PAGE))


@pytest.mark.parametrize("command", EXAMPLE.findall(PAGE))
def test_every_example_is_answered(command: str) -> None:
    answer = run(command)
    assert answer.status_code == 200, answer.text


def test_every_route_has_an_example() -> None:
    asked = {route_of(run(command)) for command in EXAMPLE.findall(PAGE)}
    assert asked == {route.replace("{model_id}", "demo") for route in HEADING.findall(PAGE)}


@pytest.mark.parametrize(("route", "who"), ROW.findall(PAGE))
def test_only_what_the_page_calls_open_is_answered_without_a_key(route: str, who: str) -> None:
    app = build_whole_app({"alice": f"sha256:{'0' * 64}"})
    answer = ask(app, *route.replace("{model_id}", "demo").split())
    assert (answer.status_code != 401) == (who == OPEN)


def test_the_page_names_every_header_of_ours() -> None:
    sent = {name for text in sources() for name in re.findall(r"\"(x-moestro-[a-z]+)\"", text)}
    assert sent == set(re.findall(r"`(x-moestro-[a-z]+)`", PAGE))


def test_a_browser_may_read_every_header_that_the_page_says_we_send() -> None:
    app = build_app(ScriptedBackend(), ServerConfig(cors_origins=("https://a.example",)))
    answer = ask(app, "GET", "/health", headers={"origin": "https://a.example"})
    # What begins with a dash is the end of a name that has been told.
    sent = {name for row in HEADER_ROW.findall(PAGE) for name in re.findall(r"`([a-z-]+)`", row)}
    sent = {name for name in sent if name[0] != "-"}
    assert {"retry-after", "x-request-id", "x-moestro-reason"} <= sent
    assert sent <= set(answer.headers["access-control-expose-headers"].split(", "))


def test_the_page_names_every_status_and_code_of_an_error() -> None:
    rows = re.findall(r"^\| (\d{3}) \| (.*?) \|", PAGE, re.M)
    assert {int(status) for status, _ in rows} >= set(ANSWERS)
    named = {code for _, codes in rows for code in re.findall(r"`(\w+)`", codes)}
    errors = (PACKAGE / "server" / "errors.py").read_text()
    used = {code for text in sources() for code in re.findall(r"\bcode=\"(\w+)\"", text)}
    used |= set(re.findall(r"^    \d{3}: \"(\w+)\",$", errors, re.M)) | {"context_length_exceeded"}
    assert named == used


def sources() -> Iterator[str]:
    return (path.read_text() for path in python_files("moestro"))


def run(command: str) -> httpx.Response:
    """Do what curl would: its address, headers and body."""
    words = shlex.split(command.replace("\\\n", " "))[1:]
    headers, body, address = {}, None, ""
    while words:
        word = words.pop(0)
        if word == "-H":
            name, _, value = words.pop(0).partition(": ")
            headers[name] = value
        elif word == "-d":
            body = words.pop(0)
        elif word != "-N":
            address = word
    assert address.startswith(ADDRESS), command
    method = "GET" if body is None else "POST"
    return ask(APP, method, address.removeprefix(ADDRESS), headers=headers, content=body)


def route_of(answer: httpx.Response) -> str:
    return f"{answer.request.method} {answer.request.url.path}"
