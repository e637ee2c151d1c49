"""Bodies that no client should send: each gets the right error soon, and nobody else notices.

Next: test_abuse_connections.py, test_abuse_model.py.
"""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flow.siege import (
    CHAT,
    COMPLETIONS,
    Neighbor,
    Server,
    assert_refused,
    besieged,
    neighbor_of,
    post,
    undisturbed,
    wait_for,
)

ENDLESS = {"model": "scripted", "ignore_eos": True, "max_tokens": 8000}
ASKED: dict[str, Any] = {"model": "scripted", "prompt": "x", "max_tokens": 2}
TURN = {"role": "user", "content": "x"}
TALK: dict[str, Any] = {"model": "scripted", "messages": [TURN], "max_tokens": 2}
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
SECRET = "xyzzy-plugh"
MANY = 1_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with besieged(tmp_path_factory.mktemp("siege")) as server:
        yield server


@pytest.fixture(scope="module")
def neighbor(server: Server) -> Iterator[Neighbor]:
    with neighbor_of(server, **ENDLESS) as neighbor:
        yield neighbor


@pytest.fixture(scope="module", autouse=True)
def nothing_left(server: Server, neighbor: Neighbor) -> Iterator[None]:
    """Prove that the server holds no more in the end than it did before."""
    before = server.holdings()
    yield
    wait_for(lambda: server.holdings() == before)


@pytest.fixture(autouse=True)
def peace(neighbor: Neighbor) -> Iterator[None]:
    """Prove that a neighbor's stream flows on through every test."""
    with undisturbed(neighbor):
        yield


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", ["the body is missing"]),
        (b'{"model": ', ["not JSON"]),
        (b"[]", ["the body is []", "object"]),
        (b"null", ["the body is null", "object"]),
        (json.dumps(ASKED).encode() + b"\0", ["not JSON", "trailing"]),
        (json.dumps(ASKED).encode("utf-16"), ["not JSON"]),
        (b'{"prompt": "\xe4\xb8"}', ["not UTF-8"]),
        (b'{"prompt": "\xff\xfe"}', ["not UTF-8"]),
        (b'{"prompt": "\\ud800 and more"}', ["not JSON"]),
        (b'{"prompt": "\\udc00 and more"}', ["not JSON", "surrogate"]),
        (b'{"\\ud800 and more": 1}', ["not JSON"]),
        (b'{"prompt": "x", "temperature": NaN}', ["not JSON"]),
        (b'{"prompt": "x", "temperature": -Infinity}', ["not JSON"]),
        (b'{"prompt": "x", "temperature": 1e999}', ["out of range"]),
        (b'{"prompt": "x", "max_tokens": ' + b"9" * MANY + b"}", ["out of range"]),
        (b'{"prompt": ' + b"[" * 10_000, ["nests too deeply"]),
        (b'{"prompt": "x", "a": ' + b"[" * 500 + b"]" * 500 + b"}", ["nests too deeply"]),
        (b"[" * 4 * MANY, ["more than 50000 lists"]),
        (b'{"a": ' * MANY, ["more than 50000 lists"]),
        (json.dumps({str(key): 1 for key in range(MANY // 2)}).encode(), ["more than 50000"]),
    ],
    ids=range(20),
)
def test_what_is_no_json_object_is_refused(server: Server, body: bytes, words: list[str]) -> None:
    assert_refused(server.ask(COMPLETIONS, body), 400, *words)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("max_tokens", "5", ["max_tokens", '"5"', "integer"]),
        ("max_tokens", True, ["max_tokens", "true", "integer"]),
        ("max_tokens", -1, ["max_tokens", "-1"]),
        ("temperature", "0.5", ["temperature", '"0.5"', "number"]),
        ("temperature", -0.1, ["temperature", "-0.1"]),
        ("top_p", 0, ["top_p", "0"]),
        ("n", MANY, ["n is 1000000", "128"]),
        ("stop", [str(number) for number in range(10_000)], ["stop", "10000", "at most 16"]),
        ("stop", "x" * 100_000, ["stop", "length 100000", "1000 characters"]),
        ("stop", "", ["stop"]),
        ("logit_bias", {str(number): 1 for number in range(40_000)}, ["logit_bias", "40000"]),
        ("logit_bias", {"a": 1}, ["logit_bias.a"]),
        ("model", ["scripted"], ["model", "string"]),
        ("stream", 1, ["stream is 1", "boolean"]),
        ("guided_choice", ["x"] * 10_000, ["guided_choice", "at most 1024"]),
        ("prompt", ["a"] * MANY, ["prompt is a list of length 1000000", "at most 128"]),
        ("prompt", [1.5] * MANY, ["prompt[0]", "1.5", "integer"]),
        ("prompt", [-1] * MANY, ["prompt[0]", "-1"]),
        ("prompt", [353] * MANY, ["1000000 tokens", "8192"]),
        ("prompt", "word " * MANY, ["tokens", "8192", "shorten"]),
        ("prompt", [[353]] * 40_000, ["length 40000", "at most 128"]),
    ],
)
def test_a_field_that_cannot_be_is_named(
    server: Server, field: str, value: object, words: list[str]
) -> None:
    body = json.dumps(ASKED | {field: value}).encode()
    assert_refused(server.ask(COMPLETIONS, body), 400, *words)


def test_one_request_asks_for_a_bounded_number_of_answers(server: Server) -> None:
    asked = ASKED | {"prompt": ["x"] * 128, "n": 128}
    assert_refused(server.ask(COMPLETIONS, asked), 400, "128 prompts", "16384", "limit 1024")


@pytest.mark.parametrize("name", ["nobody", "m" * MANY, "../../etc/passwd", "{{ 7 * 7 }}"])
def test_an_unknown_model_is_named_and_cut_short(server: Server, name: str) -> None:
    answer = server.ask(COMPLETIONS, ASKED | {"model": name})
    assert_refused(answer, 404, name[:60], "choose scripted")
    assert answer.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, TALK | {"messages": [TURN] * 5000}),
        (CHAT, TALK | {"messages": [TURN] * 49_000}),
        (CHAT, TALK | {"messages": [TURN | {"content": [1] * MANY}]}),
        (CHAT, TALK | {"messages": [TURN | {"role": "root"}]}),
        (CHAT, TALK | {"tools": [1] * MANY}),
        (MESSAGES, TALK | {"messages": [1] * MANY}),
        (MESSAGES, TALK | {"messages": [{"role": "user", "content": [1] * MANY}]}),
        (MESSAGES, TALK | {"messages": [{"role": "user", "content": [{"type": "x"}] * 20_000}]}),
        (MESSAGES, TALK | {"system": [1] * MANY}),
        (MESSAGES, TALK | {"tools": [1] * MANY}),
        (MESSAGES, TALK | {"stop_sequences": [1] * MANY}),
        (MESSAGES + "/count_tokens", TALK | {"system": [1] * MANY}),
        (RESPONSES, {"model": "scripted", "input": [1] * MANY}),
        (RESPONSES, {"model": "scripted", "input": [{"type": "x"}] * 20_000}),
        (RESPONSES, {"model": "scripted", "input": [TURN | {"content": [1] * MANY}]}),
        (RESPONSES, {"model": "scripted", "input": "x", "tools": [1] * MANY}),
        (RESPONSES, {"model": "scripted", "input": "x", "include": [1] * MANY}),
        (RESPONSES, {"model": "scripted", "input": "x", "metadata": {"a": 1}}),
        (
            RESPONSES,
            {"model": "scripted", "input": "x", "metadata": {"a" * n: "" for n in range(17)}},
        ),
        ("/tokenize", {"prompt": "word " * MANY}),
        ("/detokenize", {"tokens": [-1] * MANY}),
        ("/detokenize", {"tokens": [2**53 - 1]}),
    ],
    ids=range(22),
)
def test_every_list_of_every_dialect_ends_at_its_first_mistake(
    server: Server, path: str, body: dict[str, Any]
) -> None:
    answer = server.ask(path, json.dumps(body).encode())
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    assert answer.elapsed.total_seconds() < 5


def test_brackets_in_a_text_are_not_counted(server: Server) -> None:
    code = '[{"\\' * 100_000
    assert server.ask(CHAT, TALK | {"user": code}).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "", "json"])
def test_a_body_of_another_type_is_refused(server: Server, kind: str) -> None:
    answer = server.ask(COMPLETIONS, ASKED, **{"content-type": kind})
    assert_refused(answer, 415, "content-type", "application/json")


def test_a_body_that_is_too_large_is_refused_with_its_length_told_or_not(server: Server) -> None:
    body = b"x" * (9 * 2**20)
    assert_refused(server.ask(COMPLETIONS, body), 413, "8388608 bytes")
    pieces = (body[start : start + 2**20] for start in range(0, len(body), 2**20))
    headers = {"content-type": "application/json"}
    answer = server.client.post(COMPLETIONS, content=pieces, headers=headers)
    assert_refused(answer, 413, "8388608 bytes")


@pytest.mark.parametrize("path", ["/ui/state?since=x", "/ui/state?since=" + "9" * 5000])
def test_a_query_that_cannot_be_is_named(server: Server, path: str) -> None:
    answer = server.client.get(path)
    assert_refused(answer, 400, "since is ")
    assert answer.json()["error"]["param"] == "since"


@pytest.mark.parametrize(
    "name",
    [
        "../../../../etc/passwd",
        "%2e%2e/%2e%2e/app.py",
        "%2e%2e%2f%2e%2e%2fapp.py",
        "..%5c..%5capp.py",
        "/etc/passwd",
        "assets.py",
        "chat.js%00.css",
        "",
    ],
)
def test_no_path_leads_out_of_the_pages_files(server: Server, name: str) -> None:
    request = f"GET /ui/assets/{name} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    answer = server.say(request.encode())
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b'"code":"unknown_url"' in answer


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"])
def test_another_method_is_refused_with_the_right_one(server: Server, method: str) -> None:
    answer = server.client.request(method, CHAT)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    if method != "HEAD":
        assert_refused(answer, 405, "does not take this method")


def test_nothing_of_what_was_asked_is_logged_and_polls_are_not(server: Server) -> None:
    for body in (
        ASKED | {"prompt": SECRET},
        ASKED | {"prompt": [SECRET, 1]},
        ASKED | {"prompt": SECRET * 10_000},
        ASKED | {"prompt": "x", "n": SECRET},
        TALK | {"messages": [TURN | {"content": SECRET}]},
        ASKED | {"model": SECRET},
    ):
        server.ask(CHAT if "messages" in body else COMPLETIONS, body)
    server.ask(COMPLETIONS, f'{{"prompt": "{SECRET}'.encode())
    server.say(post(f"{COMPLETIONS}?{SECRET}", b"{}", connection="close", x_a=SECRET))
    for path in ("/health", "/ready", "/metrics", "/ui/state", "/ui/assets/none"):
        server.client.get(path)
    server.client.get("/version")
    wait_for(lambda: "GET /version" in server.log.read_text())
    said = server.log.read_text()
    assert SECRET not in said
    assert not [path for path in ("/health", "/ready", "/metrics", "/ui/") if path in said]


def test_overload_is_refused_at_once(tmp_path: Path) -> None:
    with besieged(tmp_path, max_requests=1) as server, neighbor_of(server, **ENDLESS) as neighbor:
        with undisturbed(neighbor):
            answers = [server.ask(COMPLETIONS, ASKED) for _ in range(21)]
        for answer in answers:
            assert_refused(answer, 429, "try again")
            assert int(answer.headers["retry-after"]) >= 1
        took_s = [answer.elapsed.total_seconds() for answer in answers]
        assert statistics.median(took_s) < 0.05
        whole = server.ask(CHAT, TALK | {"stream": True})
        assert_refused(whole, 429, "try again")
