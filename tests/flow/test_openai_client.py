"""The official OpenAI client, and plain HTTP clients, against a real server: all of it unmodified.

Knows no model: a scripted backend answers. Next: serving.py.
"""

import asyncio
import json
import logging
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from moestro.api.chat import ToolCall
from moestro.backends.recital import Script
from moestro.backends.scripted import ScriptedBackend
from moestro.errors import BackendError
from moestro.server.app import build_app
from tests.flow.serving import serving, wait_until

MODEL = "scripted"
ASK: Any = [{"role": "user", "content": "how many experts?"}]
TEXT = "Two experts, h\u00e9las \U0001f600, are enough."
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
CALL = ToolCall(id="call_1", name="weather", arguments='{"city": "Oslo", "days": 3}')
ENDLESS = Script(text="on " * 5000, delay_s=0.005)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(build_app(ScriptedBackend(TEXT))) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with connect(address) as client:
        yield client


def connect(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0, timeout=20)


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASK)
    assert answer.choices[0].message.content == TEXT
    assert (answer.choices[0].finish_reason, answer.model) == ("stop", MODEL)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.to_dict()["mean_experts"] == 4.0


def test_a_streamed_chat_says_whose_turn_it_is_then_the_same_text(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=ASK, stream=True, stream_options={"include_usage": True}
    ) as stream:
        events = list(stream)
    assert events[0].choices[0].delta.role == "assistant"
    assert "".join(each.choices[0].delta.content or "" for each in events[:-1]) == TEXT
    assert [each.choices[0].finish_reason for each in events[-3:-1]] == [None, "stop"]
    assert events[-1].choices == []
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens > 5
    assert len({event.id for event in events}) == 1


def test_an_asynchronous_client_is_answered_whole_and_streamed(address: str) -> None:
    async def ask() -> tuple[str | None, str]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="any") as client:
            whole = await client.chat.completions.create(model=MODEL, messages=ASK)
            stream = await client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
            parts = [event.choices[0].delta.content or "" async for event in stream]
            return whole.choices[0].message.content, "".join(parts)

    assert asyncio.run(ask()) == (TEXT, TEXT)


def test_a_stream_helper_puts_tool_calls_together() -> None:
    backend = ScriptedBackend(Script(text="", reasoning="Which city?", tool_calls=(CALL,)))
    with serving(build_app(backend)) as address, connect(address) as client:
        whole = client.chat.completions.create(model=MODEL, messages=ASK, tools=[WEATHER])
        with client.chat.completions.stream(
            model=MODEL, messages=ASK, tools=[WEATHER], tool_choice="required"
        ) as stream:
            streamed = stream.get_final_completion()
    for answer in (whole, streamed):
        (choice,) = answer.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.tool_calls is not None
        (call,) = choice.message.tool_calls
        assert (call.id, call.type) == ("call_1", "function")
        assert (call.function.name, call.function.arguments) == (CALL.name, CALL.arguments)
    assert whole.choices[0].message.to_dict()["reasoning_content"] == "Which city?"
    assert whole.usage is not None
    assert whole.usage.completion_tokens_details is not None
    assert whole.usage.completion_tokens_details.reasoning_tokens == 2


def test_a_conversation_with_tools_reaches_the_backend_whole() -> None:
    backend = ScriptedBackend("Cold.")
    messages: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [
            {"type": "text", "text": "Oslo"}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": None, "tool_calls": [{
            "id": "call_1", "type": "function",
            "function": {"name": "weather", "arguments": CALL.arguments}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "-3"},
    ]  # fmt: skip
    with serving(build_app(backend)) as address, connect(address) as client:
        client.chat.completions.create(
            model=MODEL,
            messages=messages,
            tools=[WEATHER],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "object"}},
            },
            extra_body={"experts": 2.5, "chat_template_kwargs": {"thinking": True}},
        )
    (asked,) = backend.requests
    roles = [(each.role, each.content) for each in getattr(asked, "messages", ())]
    assert roles == [
        ("system", "Be brief."),
        ("user", "Oslo?"),
        ("assistant", None),
        ("tool", "-3"),
    ]
    assert getattr(asked, "messages", ())[2].tool_calls == (CALL,)
    assert getattr(asked, "template_variables", None) == {"thinking": True}
    assert asked.options.experts == 2.5
    assert asked.options.constraint is not None
    assert json.loads(asked.options.constraint.source) == {"type": "object"}


def test_log_probabilities_come_with_bytes_and_alternatives(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=ASK, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    data = b"".join(bytes(token.bytes or ()) for token in logprobs.content)
    assert data.decode() == TEXT
    for token in logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token
        assert token.logprob < 0


def test_completions_of_several_prompts_are_numbered_by_prompt_and_choice() -> None:
    backend = ScriptedBackend("zero", "one", "two", "three")
    with serving(build_app(backend)) as address, connect(address) as client:
        answer = client.completions.create(model=MODEL, prompt=["a", "b b"], n=2, echo=True)
        stream = client.completions.create(model=MODEL, prompt=["a", "b b"], n=2, stream=True)
        pieces = [choice for event in stream for choice in event.choices]
    texts = [choice.text for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert texts == ["azero", "aone", "b bone", "b btwo"]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    streamed = ["".join(each.text for each in pieces if each.index == index) for index in range(4)]
    assert streamed == ["two", "three", "three", "zero"]


def test_completions_take_token_ids_and_give_legacy_log_probabilities(
    client: openai.OpenAI, address: str
) -> None:
    ids = httpx.post(f"{address}/tokenize", json={"prompt": "one two"}).json()["tokens"]
    answer = client.completions.create(
        model=MODEL, prompt=[ids], echo=True, logprobs=2, max_tokens=2
    )
    (choice,) = answer.choices
    assert choice.text == "one twoTwo exper"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["one", " two", "Two", " exper"]
    assert choice.logprobs.text_offset == [0, 3, 7, 10]
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.top_logprobs is not None
    assert [each and len(each) for each in choice.logprobs.top_logprobs] == [None, 2, 2, 2]
    text = httpx.post(f"{address}/detokenize", json={"tokens": ids}).json()
    assert text == {"prompt": "one two"}


def test_an_x_ray_shows_each_tokens_experts(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="x", max_tokens=4, extra_body={"xray": True, "experts": "min"}
    )
    tokens = answer.choices[0].to_dict()["xray"]
    assert [token["num_experts"] for token in tokens] == [2.0] * 4  # type: ignore[index, attr-defined]
    assert [len(token["experts"]) for token in tokens] == [6] * 4  # type: ignore[index, attr-defined]


def test_headers_say_which_request_model_and_budget(address: str) -> None:
    body = {"prompt": "x", "experts": 2.5}
    url = f"{address}/v1/completions"
    answer = httpx.post(url, json=body, headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-moestro-model"] == MODEL
    assert answer.headers["x-moestro-experts"] == "2.5"
    bad = httpx.post(url, json={"prompt": "x"}, headers={"x-request-id": "a b"})
    assert len(bad.headers["x-request-id"]) == 32
    assert "x-moestro-experts" not in bad.headers


def test_models_are_listed_and_shown(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).to_dict()["most_experts"] == 4
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"model": "other"}, openai.NotFoundError, "'other' is not served here"),
        ({"temperature": 1000}, openai.BadRequestError, "temperature is 1000: it should be"),
        ({"n": 1_000_000}, openai.BadRequestError, "n is 1000000: it should be less"),
        ({"stop": ["x"] * 10_000}, openai.BadRequestError, "stop is a list of length 10000"),
        ({"extra_body": {"experts": 9}}, openai.BadRequestError, "takes 2 to 4"),
        ({"top_logprobs": 2}, openai.BadRequestError, "set logprobs to true"),
    ],
)
def test_mistakes_are_the_clients_own_exceptions(
    client: openai.OpenAI, fields: dict[str, Any], kind: type[openai.APIStatusError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        client.chat.completions.create(**({"model": MODEL, "messages": ASK} | fields))
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


def test_overload_is_a_rate_limit_error_at_once_that_says_when_to_come_again() -> None:
    backend = ScriptedBackend(ENDLESS, max_requests=1, retry_after_s=2.5)
    with serving(build_app(backend)) as address, connect(address) as client:
        with client.chat.completions.create(model=MODEL, messages=ASK, stream=True) as stream:
            next(stream)
            began = time.monotonic()
            with pytest.raises(openai.RateLimitError) as caught:
                client.chat.completions.create(model=MODEL, messages=ASK)
            assert time.monotonic() - began < 1
        assert caught.value.response.headers["retry-after"] == "3"
        assert caught.value.code == "rate_limit_exceeded"


def test_a_backend_that_is_gone_is_a_503_before_the_answer_and_an_event_within_it() -> None:
    gone = BackendError("the engine died: it is being restarted")
    early, late = Script(error=gone), Script(text="one two three", error=gone, error_after=2)
    with serving(build_app(ScriptedBackend(early, late, late))) as address:
        with connect(address) as client:
            with pytest.raises(openai.InternalServerError, match="engine died") as caught:
                client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
            assert caught.value.status_code == 503
            stream = client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
            seen = [next(stream).choices[0].delta.content for _ in range(3)]
            with pytest.raises(openai.APIError, match="engine died"):
                next(stream)
        assert seen == ["", "one", " two"]
        body = {"prompt": "x", "stream": True}
        lines = httpx.post(f"{address}/v1/completions", json=body).text.strip().split("\n\n")
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "unavailable"


def test_a_stream_that_is_left_is_aborted_within_a_step() -> None:
    backend = ScriptedBackend(ENDLESS)
    with serving(build_app(backend)) as address, connect(address) as client:
        stream = client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
        for _ in range(3):
            next(stream)
        assert not backend.aborted
        stream.close()
        wait_until(lambda: len(backend.aborted) == 1, timeout_s=5)
        assert backend.stats()[0].num_running == 0
        assert backend.stats()[0].generation_tokens < 1000


@pytest.mark.parametrize("script", [ENDLESS, Script(queue_s=60)])
@pytest.mark.parametrize("prompt", ["one", ["one", "two"]])
@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_gives_up_is_aborted_also_while_it_waits(
    script: Script, prompt: str | list[str], is_stream: bool
) -> None:
    backend = ScriptedBackend(script)
    num = 1 if isinstance(prompt, str) else 2
    body = {"prompt": prompt, "max_tokens": 5000, "stream": is_stream}
    with serving(build_app(backend)) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(post("/v1/completions", body))
            wait_until(lambda: len(backend.requests) == num)
        wait_until(lambda: len(backend.aborted) == num, timeout_s=5)


def test_a_slow_reader_holds_back_its_own_stream_and_nobody_elses() -> None:
    fast = Script(text="word " * 100_000)
    backend = ScriptedBackend(fast, "quick")
    body = {"prompt": "x", "max_tokens": 8000, "stream": True, "ignore_eos": True, "xray": True}
    with serving(build_app(backend)) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            connection.sendall(post("/v1/completions", body))
            wait_until(lambda: backend.stats()[0].generation_tokens > 0)
            before = settled(lambda: backend.stats()[0].generation_tokens)
            assert before < 4000
            quick = httpx.post(f"{address}/v1/completions", json={"prompt": "x"}, timeout=5)
            assert quick.json()["choices"][0]["text"] == "quick"
            assert backend.stats()[0].generation_tokens < before + 100
        wait_until(lambda: len(backend.aborted) == 1)


def test_curl_is_answered(address: str) -> None:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("no curl here")
    done = subprocess.run(
        [program, "-sN", f"{address}/v1/completions", "-H", "Content-Type: application/json",
         "-d", '{"prompt": "x", "stream": true, "max_tokens": 1}'],
        capture_output=True, text=True, check=True, timeout=20,
    )  # fmt: skip
    events = done.stdout.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[0].removeprefix("data: "))["choices"][0]["text"] == "Two"


def test_a_request_is_one_line_in_the_log_without_a_word_of_its_prompt(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    url, secret = f"{address}/v1/completions", {"prompt": "my secret"}
    with caplog.at_level(logging.INFO, logger="moestro"):
        fields = {"stream": True, "max_tokens": 3}
        httpx.post(url, json=secret | fields, headers={"x-request-id": "good-1"})
        httpx.post(url, json=secret | {"n": "secret"}, headers={"x-request-id": "bad-1"})
        wait_until(lambda: len(lines(caplog)) == 2)
    good, bad = lines(caplog)
    assert good.startswith("good-1 POST /v1/completions: status 200 in ")
    assert good.endswith(" s, 3 tokens")
    assert bad.startswith("bad-1 POST /v1/completions: status 400 in ")
    assert "secret" not in caplog.text


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if "-1 " in line]


def post(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


def settled(read: Callable[[], int]) -> int:
    last = -1
    while read() != last:
        last = read()
        time.sleep(0.2)
    return last
