"""Fields of other servers: refused by name where their loss would make another answer."""

from typing import Any

import pytest

from moestro.api.openai_bodies import ChatBody, CompletionBody
from moestro.api.openai_unserved import UnservedOfChats, UnservedOptions
from moestro.backends.scripted import ScriptedBackend
from moestro.server.app import build_app
from moestro.server.openapi import describe
from tests.unit.server.asgi import ask

APP = build_app(ScriptedBackend("yes"))
CHAT = {"messages": [{"role": "user", "content": "x"}]}
CHANGES_NOTHING: dict[str, Any] = {
    "use_beam_search": False,
    "return_token_ids": False,
    "return_tokens_as_token_ids": False,
    "no_stop_trim": False,
    "logits_processors": [],
    "logprob_token_ids": [],
    "functions": [],
    "documents": [],
    "modalities": ["text"],
}


@pytest.mark.parametrize("name", UnservedOptions.model_fields)
def test_what_would_change_a_completion_is_refused_by_its_name(name: str) -> None:
    answer = ask(APP, "POST", "/v1/completions", json={"prompt": "x", name: ["a"]})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == name
    assert error["message"].startswith(f"{name} is not served: ")


@pytest.mark.parametrize("name", [*UnservedOptions.model_fields, *UnservedOfChats.model_fields])
def test_what_would_change_a_chat_is_refused_by_its_name(name: str) -> None:
    answer = ask(APP, "POST", "/v1/chat/completions", json=CHAT | {name: ["audio"]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == name


def test_what_changes_nothing_is_let_through() -> None:
    completion = {name: CHANGES_NOTHING.get(name) for name in UnservedOptions.model_fields}
    assert ask(APP, "POST", "/v1/completions", json={"prompt": "x"} | completion).is_success
    assert ask(APP, "POST", "/v1/chat/completions", json=CHAT | CHANGES_NOTHING).is_success


def test_a_structural_tag_is_refused_by_its_whole_name() -> None:
    outputs = {"structured_outputs": {"structural_tag": "{}"}}
    error = ask(APP, "POST", "/v1/chat/completions", json=CHAT | outputs).json()["error"]
    assert error["param"] == "structured_outputs.structural_tag"


def test_the_document_says_of_each_that_it_is_not_served() -> None:
    schemas = describe(APP)["components"]["schemas"]
    for body, unserved in (
        (CompletionBody, UnservedOptions),
        (ChatBody, UnservedOptions),
        (ChatBody, UnservedOfChats),
    ):
        properties = schemas[body.__name__]["properties"]
        for name in unserved.model_fields:
            assert properties[name]["description"].startswith(f"{name} is not served: ")
