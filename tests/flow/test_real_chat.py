"""Chats with a real model behind a real server: OpenAI's and Anthropic's clients, and curl.

The model talks noise, so that whatever is well formed in its answers is the server's doing. Next:
test_real_company.py.
"""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import anthropic
import jsonschema_rs
import openai
import pytest

from moestro.lm.language_model import LanguageModel
from tests.flow.real import KEY, NAME, Served

pytest_plugins = ["tests.flow.real_server"]
ASK: Any = [{"role": "user", "content": "What is the area of a circle?"}]
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
FORMAT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "kind": {"enum": ["circle", "square", None]},
        "sizes": {"type": "array", "items": {"enum": [1, 2.5, -3]}, "maxItems": 3},
        "nested": PARAMETERS,
    },
    "required": ["name", "kind", "sizes", "nested"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def claude(real_server: Served) -> Iterator[anthropic.Anthropic]:
    with real_server.anthropic() as client:
        yield client


def say(client: openai.OpenAI, **fields: Any) -> Any:
    defaults = {"model": NAME, "messages": ASK, "max_tokens": 24, "temperature": 0}
    return client.chat.completions.create(**(defaults | fields))


def test_a_chat_is_the_template_gone_on_from(
    real_client: openai.OpenAI, real_lm: LanguageModel
) -> None:
    text = "<|im_start|>user\nWhat is the area of a circle?<|im_end|>\n<|im_start|>assistant\n"
    ids = real_lm.tokenizer.encode_trusted(text)
    expected = real_client.completions.create(model=NAME, prompt=ids, max_tokens=24, temperature=0)
    answer = say(real_client)
    assert answer.choices[0].message.content == expected.choices[0].text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == len(ids)


def test_a_streamed_chat_is_the_same(real_server: Served, real_client: openai.OpenAI) -> None:
    async def stream() -> str:
        async with real_server.async_client() as client:
            events = await client.chat.completions.create(
                model=NAME, messages=ASK, max_tokens=24, temperature=0, stream=True
            )
            return "".join([event.choices[0].delta.content or "" async for event in events])

    assert asyncio.run(stream()) == say(real_client).choices[0].message.content


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_a_call_that_is_required_is_made_by_any_model(
    real_client: openai.OpenAI, choice: Any
) -> None:
    fields: dict[str, Any] = {"seed": 1, "temperature": 1, "max_tokens": 400, "n": 6}
    fields |= {"tools": [WEATHER], "tool_choice": choice, "parallel_tool_calls": False}
    made = say(real_client, **fields).choices
    assert len(made) == 6
    for choice in made:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        (call,) = choice.message.tool_calls
        assert call.function.name == "weather"
        assert jsonschema_rs.is_valid(PARAMETERS, json.loads(call.function.arguments))


def test_streamed_arguments_are_those_of_the_whole_call(real_client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"seed": 5, "temperature": 1, "max_tokens": 400}
    fields |= {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    whole = say(real_client, **fields).choices[0].message.tool_calls[0]
    with real_client.chat.completions.stream(model=NAME, messages=ASK, **fields) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed is not None
    assert streamed[0].function.arguments == whole.function.arguments
    assert streamed[0].function.name == "weather"


def test_an_answer_with_a_schema_is_always_valid(real_client: openai.OpenAI) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "shape", "schema": FORMAT}}
    texts = set()
    for seed in (0, 100):
        fields: dict[str, Any] = {"seed": seed, "temperature": 1, "max_tokens": 400, "n": 5}
        for choice in say(real_client, response_format=wanted, **fields).choices:
            assert choice.finish_reason == "stop"
            assert jsonschema_rs.is_valid(FORMAT, json.loads(choice.message.content))
            texts.add(choice.message.content)
    assert len(texts) == 10


def test_mistakes_are_refused(real_client: openai.OpenAI) -> None:
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strange"}}}
    with pytest.raises(openai.BadRequestError, match="JSON schema"):
        say(real_client, response_format=bad)
    with pytest.raises(openai.BadRequestError, match="context length is 512 tokens: shorten it"):
        say(real_client, messages=[{"role": "user", "content": "area " * 600}])
    with pytest.raises(openai.NotFoundError, match="not served here"):
        say(real_client, model="gpt-9")
    with pytest.raises(openai.BadRequestError, match="takes 2 to 4"):
        say(real_client, extra_body={"experts": 1})


def test_anthropics_client_gets_the_same_answer_whole_and_streamed(
    real_client: openai.OpenAI, claude: anthropic.Anthropic
) -> None:
    # This client has no name for a temperature any more.
    fields: Any = {"model": NAME, "messages": ASK, "max_tokens": 24}
    fields |= {"extra_body": {"temperature": 0}}
    (block,) = claude.messages.create(**fields).content
    with claude.messages.stream(**fields) as stream:
        texts = list(stream.text_stream)
        streamed = stream.get_final_message()
    assert block.type == "text"
    assert block.text == "".join(texts) == say(real_client).choices[0].message.content
    assert len(texts) > 5
    assert streamed.stop_reason == "max_tokens"
    assert streamed.usage.output_tokens == 24


def test_anthropics_client_gets_a_call_that_it_insists_on(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(
        model=NAME,
        messages=ASK,
        max_tokens=400,
        tools=[{"name": "weather", "input_schema": PARAMETERS}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    )
    (call,) = message.content
    assert message.stop_reason == "tool_use"
    assert call.type == "tool_use"
    assert jsonschema_rs.is_valid(PARAMETERS, call.input)


def curl(*arguments: str) -> str:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("no curl here")
    done = subprocess.run(
        [program, "-sN", *arguments], capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout


def test_curl_streams_reads_metrics_and_is_refused_without_a_key(real_server: Served) -> None:
    body = {"model": NAME, "prompt": "def", "stream": True, "max_tokens": 8, "ignore_eos": True}
    url, key = f"{real_server.url}/v1/completions", f"Authorization: Bearer {KEY}"
    question = ("-H", "Content-Type: application/json", "-d", json.dumps(body))
    *events, done = curl(url, "-H", key, *question).strip().split("\n\n")
    assert done == "data: [DONE]"
    last = json.loads(events[-1].removeprefix("data: "))
    assert last["choices"][0]["finish_reason"] == "length"
    assert json.loads(curl(f"{real_server.url}/health")) == {"status": "ok"}
    told = curl(f"{real_server.url}/metrics", "-H", key)
    assert f'moestro:expert_tokens_total{{expert="7",layer="1",model_name="{NAME}"}}' in told
    assert f'moestro:mean_experts{{model_name="{NAME}"}}' in told
    for refused in (curl(url, *question), curl(f"{real_server.url}/metrics", "-H", f"{key}x")):
        assert json.loads(refused)["error"]["code"] == "invalid_api_key"
