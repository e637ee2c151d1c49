"""Images reach a backend that sees, in its own words, whichever official client sent them.

Next: test_served.py, test_anthropic.py.
"""

import base64
from typing import Any

import anthropic
import httpx
import openai
import pytest

from moestro.api.chat import ChatRequest, Image, Message
from moestro.gateway.writing import write_request
from tests.unit.gateway import test_anthropic, upstreams
from tests.unit.gateway.chained import chain
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.test_messages_auto import speak_openai
from tests.unit.gateway.test_served import served
from tests.unit.gateway.upstreams import Asking

DATA = base64.b64encode(b"\x89PNG").decode()
NEAR, FAR = f"data:image/png;base64,{DATA}", "http://x/y.png"
OPENAIS = [
    {"type": "text", "text": "Which?"},
    {"type": "image_url", "image_url": {"url": NEAR}},
    {"type": "image_url", "image_url": {"url": FAR}},
]
ANTHROPICS = [
    {"type": "text", "text": "Which?"},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}},
    {"type": "image", "source": {"type": "url", "url": FAR}},
]
RESPONSES = [
    {"type": "input_text", "text": "Which?"},
    {"type": "input_image", "image_url": NEAR},
    {"type": "input_image", "image_url": FAR},
]


async def ask_chat(root: str, model: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{root}/v1", api_key="-", max_retries=0) as client:
        turn: Any = {"role": "user", "content": OPENAIS}
        await client.chat.completions.create(model=model, messages=[turn])


async def ask_responses(root: str, model: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{root}/v1", api_key="-", max_retries=0) as client:
        turn: Any = {"role": "user", "content": RESPONSES}
        await client.responses.create(model=model, input=[turn])


async def ask_messages(root: str, model: str) -> None:
    async with anthropic.AsyncAnthropic(base_url=root, api_key="-", max_retries=0) as client:
        turn: Any = {"role": "user", "content": ANTHROPICS}
        await client.messages.create(model=model, messages=[turn], max_tokens=9)


def shown_to(asking: Asking) -> Any:
    (turn,) = asking.body["messages"]
    return turn["content"]


@pytest.mark.parametrize("ask", [ask_chat, ask_responses, ask_messages])
@pytest.mark.parametrize("is_openais", [True, False])
def test_each_client_shows_images_to_either_kind_of_backend(ask: Any, is_openais: bool) -> None:
    async def work() -> Any:
        behaviors: Any = {"gpt": [upstreams.well], "claude": [test_anthropic.well]}
        async with served(behaviors, dialect="anthropic") as (root, running):
            speak_openai(running, "gpt")
            model = "gpt" if is_openais else "claude"
            await ask(root, model)
            return shown_to(running.servers[model][0].asked[0])

    assert run(work()) == (OPENAIS if is_openais else ANTHROPICS)


def test_a_tools_image_follows_its_text_where_turns_of_tools_have_text_alone() -> None:
    image = Image(url=FAR)
    asked = ChatRequest(
        model="m",
        messages=(
            Message(role="tool", content=("one", image), tool_call_id="t"),
            Message(role="tool", content="two", tool_call_id="u"),
            Message(role="user", content="so?"),
            Message(role="tool", content=(image,), tool_call_id="v"),
            Message(role="assistant", content="hm"),
            Message(role="tool", content=(image,), tool_call_id="w"),
        ),
    )
    written = write_request(asked)["messages"]
    part = {"type": "image_url", "image_url": {"url": FAR}}
    assert [(turn["role"], turn["content"]) for turn in written] == [
        ("tool", "one"),
        ("tool", "two"),
        ("user", [part, {"type": "text", "text": "so?"}]),
        ("tool", ""),
        ("user", [part]),
        ("assistant", "hm"),
        ("tool", ""),
        ("user", [part]),
    ]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": OPENAIS}]}, "messages"),
        ("/v1/responses", {"input": [{"role": "user", "content": RESPONSES}]}, "input"),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": ANTHROPICS}], "max_tokens": 9},
            None,
        ),
    ],
)
@pytest.mark.parametrize("has_gateway", [False, True])
def test_a_model_of_text_refuses_images_in_the_callers_own_form(
    path: str, body: dict[str, Any], param: str | None, has_gateway: bool
) -> None:
    with chain(is_local=True) as link:
        root = link.root if has_gateway else link.upstream
        answer = httpx.post(f"{root}{path}", json=body | {"model": "m"}, timeout=20)
    said = answer.json()
    assert answer.status_code == 400
    assert "has an image, but this model reads text only" in said["error"]["message"]
    assert not link.backend.requests
    if param is None:
        assert said["type"] == "error"
        assert said["error"]["type"] == "invalid_request_error"
    else:
        assert has_gateway or said["error"]["param"] == param
