"""A real model under attack: what reaches chat templates, tokenizers and grammars.

Next: test_real_trouble.py.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.flow import real
from tests.flow.siege import (
    CHAT,
    COMPLETIONS,
    Neighbor,
    Server,
    assert_refused,
    connect,
    neighbor_of,
    undisturbed,
    wait_for,
)

ASKED: dict[str, Any] = {"prompt": "def area", "max_tokens": 8, "temperature": 0}
TURN = {"role": "user", "content": "x"}
TALK: dict[str, Any] = {"messages": [TURN], "max_tokens": 8, "temperature": 0}
MANY = 1_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with real.serving(tmp_path_factory.mktemp("siege")) as served:
        port = int(served.url.rpartition(":")[2])
        with connect(port, real.KEY) as client:
            yield Server(served.process, port, served.log, client, real.KEY)


@pytest.fixture(scope="module")
def neighbor(server: Server) -> Iterator[Neighbor]:
    with neighbor_of(server, ignore_eos=True, max_tokens=400) as neighbor:
        yield neighbor


@pytest.fixture(scope="module", autouse=True)
def nothing_left(server: Server, neighbor: Neighbor) -> Iterator[None]:
    """Prove that nothing runs in the end but the neighbor's stream, and no file stays open."""
    num_files = count_files(server)
    yield
    wait_for(lambda: server.num_requests() <= 1)
    wait_for(lambda: count_files(server) <= num_files + 1)


@pytest.fixture(autouse=True)
def peace(neighbor: Neighbor) -> Iterator[None]:
    """Prove that a neighbor's stream flows on through every test."""
    with undisturbed(neighbor):
        yield


def count_files(server: Server) -> int:
    """Count open files; those of the neighbor's connection come and go."""
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


@pytest.mark.parametrize(
    ("kind", "source", "words"),
    [
        ("guided_json", {"type": "nope"}, ["JSON schema", "nope"]),
        ("guided_json", "{", ["JSON schema", "not valid JSON"]),
        ("guided_json", {"$ref": "#"}, ["JSON schema"]),
        ("guided_json", {"$ref": "file:///etc/passwd"}, ["JSON schema", "does not fetch"]),
        ("guided_json", {"$ref": "http://127.0.0.1:1/x"}, ["JSON schema", "does not fetch"]),
        ("guided_json", {"type": "number", "multipleOf": 0.123456789}, ["multipleOf"]),
        ("guided_json", {"enum": ["x" * 100_000, "y" * 100_000]}, ["characters", "131072"]),
        ("guided_regex", "(", ["regular expression"]),
        ("guided_regex", "(" * 200 + "a" + "{0,9})" * 200, ["regular expression"]),
        ("guided_regex", "a" * 100_000, ["100000 characters", "65536"]),
        ("guided_grammar", "start: (", ["grammar"]),
        ("guided_grammar", 'start: %json {"type": "object"}', ["grammar", "%json"]),
        ("guided_grammar", "start: nowhere", ["grammar"]),
    ],
    ids=range(13),
)
def test_what_no_answer_can_follow_is_refused(
    server: Server, kind: str, source: object, words: list[str]
) -> None:
    assert_refused(server.ask(COMPLETIONS, ASKED | {kind: source}), 400, *words)


def bomb(num_levels: int) -> dict[str, Any]:
    """Build a schema whose size doubles with every level, written out."""
    pairs = {
        f"d{level}": {"allOf": [{"$ref": f"#/$defs/d{level + 1}"}] * 2}
        for level in range(num_levels)
    }
    leaf = {f"d{num_levels}": {"type": "object", "properties": {"a": {"type": "string"}}}}
    return {"$defs": pairs | leaf, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("guided_regex", "(a+)+b(a*)*c"),
        ("guided_regex", "(a|b)*a(a|b){25}"),
        ("guided_regex", "((a{1,1000}){1,1000}){1,1000}"),
        ("guided_regex", r"(\p{L}|\p{N}){1,2000}"),
        ("guided_regex", "|".join(f"w{number}x" for number in range(9000))),
        ("guided_grammar", 'start: s\ns: s s s | s s | "a" | "aa" | '),
        ("guided_json", bomb(30)),
        ("guided_json", {"type": "array", "minItems": 10**6, "items": {"minLength": 10**6}}),
        ("guided_json", {"type": "string", "minLength": 2**31 - 1}),
        (
            "guided_json",
            {
                "properties": {
                    f"p{i}": {"pattern": f"^(a|b)*a(a|b){{{i % 20}}}$"} for i in range(800)
                }
            },
        ),
    ],
    ids=range(10),
)
def test_what_would_take_for_ever_is_refused_or_followed_soon(
    server: Server, kind: str, source: object
) -> None:
    answer = server.ask(COMPLETIONS, ASKED | {kind: source})
    assert answer.elapsed.total_seconds() < 5
    if answer.status_code != 200:
        assert_refused(answer, 400)


def test_a_grammar_that_outgrows_its_parser_fails_alone(server: Server) -> None:
    names = [f"r{number}" for number in range(2000)]
    rules = [f'{name}: "a" {names[number - 1]} | "b"' for number, name in enumerate(names)]
    source = "\n".join([f"start: {' | '.join(names)}", *rules])
    answer = server.ask(COMPLETIONS, ASKED | {"guided_grammar": source})
    assert_refused(answer, 400, "grammar")
    assert server.ask(COMPLETIONS, ASKED).status_code == 200


@pytest.mark.parametrize("name", ["self", "messages", "tools", "continue_final"])
def test_what_a_template_is_given_cannot_be_replaced(server: Server, name: str) -> None:
    for path in (CHAT, "/tokenize"):
        answer = server.ask(path, TALK | {"chat_template_kwargs": {name: [TURN]}})
        assert_refused(answer, 400, f"the chat template's {name} cannot be set")


@pytest.mark.parametrize(
    "name",
    ["bos_token", "loop", "range", "raise_exception", "namespace", "~meter", "~count", "__class__"],
)
def test_a_variable_of_a_strange_name_changes_nothing(server: Server, name: str) -> None:
    given = {"chat_template_kwargs": {name: "<|im_start|>"}}
    tokens = [server.ask("/tokenize", TALK | more).json()["tokens"] for more in ({}, given)]
    assert tokens[0] == tokens[1]


def test_a_template_in_a_message_stays_text(server: Server) -> None:
    for text in (
        "{{ 7 * 7 }}",
        "{% for i in range(10) %}{{ i }}{% endfor %}",
        "{{ self.__init__ }}",
    ):
        talk = {"messages": [TURN | {"content": text}]}
        tokens = server.ask("/tokenize", talk).json()["tokens"]
        assert text in server.ask("/detokenize", {"tokens": tokens}).json()["prompt"]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (COMPLETIONS, ASKED | {"prompt": "radius " * 600}, ["tokens", "context length is 512"]),
        (COMPLETIONS, ASKED | {"prompt": "radius " * MANY}, ["characters", "512 tokens"]),
        (COMPLETIONS, ASKED | {"suffix": "radius " * MANY}, ["characters", "512 tokens"]),
        (COMPLETIONS, ASKED | {"prompt": [5] * MANY}, ["1000000 tokens", "length is 512"]),
        (COMPLETIONS, ASKED | {"prompt": [2**53 - 1]}, ["outside the vocabulary"]),
        (COMPLETIONS, ASKED | {"min_tokens": 2**60}, ["min_tokens", "max_tokens is 8"]),
        (COMPLETIONS, ASKED | {"stop_token_ids": [2**52]}, ["stop_token_ids names token"]),
        (COMPLETIONS, ASKED | {"logit_bias": {"999999": 1}}, ["logit_bias names token 999999"]),
        (CHAT, TALK | {"messages": [TURN] * 4096}, ["tokens", "context length is 512"]),
        (CHAT, TALK | {"messages": [TURN | {"content": "<" * 5 * MANY}]}, ["characters"]),
        (CHAT, TALK | {"messages": [TURN | {"name": "<" * 5 * MANY}]}, ["characters"]),
        (CHAT, TALK | {"chat_template_kwargs": {"a": [1] * MANY}}, ["chat_template_kwargs"]),
        (
            CHAT,
            TALK
            | {
                "tools": [
                    {"type": "function", "function": {"name": "f", "parameters": {"a": [1] * MANY}}}
                ]
            },
            ["tools", "limit 262144"],
        ),
        ("/tokenize", {"prompt": "radius " * MANY}, ["characters", "512 tokens"]),
        ("/tokenize", {"messages": [TURN | {"content": "a " * MANY}]}, ["characters"]),
        ("/detokenize", {"tokens": [2**53 - 1]}, ["outside the vocabulary"]),
    ],
    ids=range(16),
)
def test_what_no_context_holds_is_refused_before_any_work(
    server: Server, path: str, body: dict[str, Any], words: list[str]
) -> None:
    assert_refused(server.ask(path, body), 400, *words)


def test_a_million_tokens_are_read_beside_the_streams(server: Server) -> None:
    answer = server.ask("/detokenize", {"tokens": [65] * MANY})
    assert answer.status_code == 200
    assert answer.elapsed.total_seconds() < 5
