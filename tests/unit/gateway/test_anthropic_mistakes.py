"""What Anthropic's dialect cannot say, or nobody's, is a mistake that names its field.

Next: test_anthropic.py.
"""

from typing import Any

import pytest

from moestro.errors import ConfigError
from moestro.gateway.anthropic import write_messages
from tests.unit.gateway.test_anthropic import well
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.upstreams import gateway_over

TURNS: list[Any] = [{"role": "user", "content": "hi"}]
CALL = {"id": "t", "function": {"name": "look", "arguments": "[1]"}}


def said_by(**turn: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi"} | turn]}


MALFORMED: dict[str, dict[str, Any]] = {
    r"messages\[0\].content\[0\]: expected object, got str": said_by(content=["x"]),
    r"messages\[0\].content: expected .* got int": said_by(content=5),
    r"messages\[0\].content\[0\].image_url: expected object": said_by(
        content=[{"type": "image_url", "image_url": "http://x/y.png"}]
    ),
    r"messages\[0\].content\[0\] has a part of type audio": said_by(content=[{"type": "audio"}]),
    r"messages\[0\].content\[0\].image_url.url has its data in other words": said_by(
        content=[{"type": "image_url", "image_url": {"url": "data:text/plain,x"}}]
    ),
    r"messages\[0\].content has an image": said_by(
        role="system", content=[{"type": "image_url", "image_url": {"url": "http://x"}}]
    ),
    r"messages\[0\].role: invalid enum value 'function'": said_by(role="function"),
    r"messages\[0\].function_call is not known here": said_by(function_call={"name": "look"}),
    r"messages\[0\].tool_calls\[0\]: expected object, got str": said_by(tool_calls=["x"]),
    r"messages\[0\].tool_calls\[0\].function.arguments are no JSON object": said_by(
        tool_calls=[CALL]
    ),
    r"tools\[0\]: expected object, got str": {"tools": ["a"]},
    r"tools\[0\]: object missing required field function": {"tools": [{"type": "custom"}]},
    r"tool_choice is maybe: send one of": {
        "tools": [{"function": {"name": "look"}}],
        "tool_choice": "maybe",
    },
    "response_format: expected object.*, got str": {"response_format": "json"},
    "max_tokens: expected int.*, got str": {"max_tokens": "many"},
}
UNKNOWN: dict[str, Any] = {
    "n": 2,
    "logprobs": True,
    "logit_bias": {"5": 1},
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "reasoning_effort": "high",
    "functions": [{"name": "look"}],
    "function_call": {"name": "look"},
    "guided_regex": "a+",
    "temperature": 1.5,
    "max_tokens": 0,
    "max_completion_tokens": 0,
    "response_format": {"type": "json_object"},
}
PLAIN: dict[str, Any] = {
    "n": 1,
    "logprobs": False,
    "frequency_penalty": 0.0,
    "presence_penalty": 0,
    "reasoning_effort": "minimal",
    "functions": [],
    "response_format": {"type": "text"},
    # Hints that promise nothing.
    "seed": 7,
    "store": False,
}


@pytest.mark.parametrize("message", MALFORMED)
def test_what_is_malformed_names_its_field(message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_messages({"messages": TURNS} | MALFORMED[message], "m")


@pytest.mark.parametrize("field", UNKNOWN)
def test_what_would_change_the_answer_is_not_left_out_in_silence(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} is .* the model m "):
        write_messages({"messages": TURNS, field: UNKNOWN[field]}, "m")


def test_what_changes_nothing_is_left_out() -> None:
    plain = {"model": "m", "max_tokens": 4096}
    turns = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert write_messages({"messages": TURNS} | PLAIN, "m") == plain | {"messages": turns}


def test_a_mistake_asks_nobody_and_counts_against_nobody() -> None:
    async def work() -> Any:
        async with gateway_over({"m": [well]}, dialect="anthropic") as running:
            for _ in range(6):
                with pytest.raises(ConfigError, match=r"messages\[0\].content\[0\]"):
                    await running.ask(messages=[{"role": "user", "content": ["x"]}])
            return (await running.ask()).status, running

    status, running = run(work())
    assert (status, len(running.servers["m"][0].asked)) == (200, 1)
    assert [record.status for record in running.records] == [400] * 6 + [200]
