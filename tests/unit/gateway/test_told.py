"""How many tokens have been told: never fewer than can be known, whatever an event holds."""

import json
from typing import Any

import pytest

from moestro.gateway.told import Told
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.upstreams import Asking, gateway_over, read_stream, well, word


def event(text: str, *, usage: int | None = None, **choice: Any) -> bytes:
    said: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": text}, **choice}]}
    if usage is not None:
        said["usage"] = {"prompt_tokens": 5, "completion_tokens": usage}
    return b"data: " + json.dumps({"id": "a", "model": "m", "created": 7} | said).encode() + b"\n\n"


ENTRIES = [{"token": "w", "logprob": -1.0}] * 3
EVENTS: dict[str, tuple[list[bytes], int]] = {
    "one each": ([event("a"), event("b")], 2),
    "as many as it lists": ([event("a", logprobs={"content": ENTRIES}), event("b")], 4),
    "as the backend counted": ([event("a", usage=3), event("b", usage=9)], 9),
    "as its text needs": ([event("word " * 16)], 10),
    "a list that is none": ([event("a", logprobs={"content": 5}), event("b", logprobs=[])], 2),
}


@pytest.mark.parametrize("case", EVENTS)
def test_an_event_may_have_several_tokens(case: str) -> None:
    events, num = EVENTS[case]
    told = Told()
    for each in events:
        told.add(each)
    assert told.num_tokens == num
    assert told.go_on() == num
    told.add(event("c", usage=4))
    assert told.num_tokens == num + 4


def test_what_a_backend_counts_without_a_word_is_not_visible() -> None:
    told = Told()
    told.add(event("", usage=1))
    assert not told.is_visible


def test_who_goes_on_has_only_what_the_limit_leaves() -> None:
    async def burst(asking: Asking) -> None:
        # Three tokens in one event, and the backend says so.
        await asking.events([event("".join(map(word, range(3))), usage=3)])
        await asking.end()

    async def work() -> Any:
        async with gateway_over({"m": [[burst, well]]}) as running:
            data = await running.stream(max_tokens=5)
            return read_stream(data)[0], running.servers["m"][0].asked[1].body

    text, body = run(work())
    assert body["max_tokens"] == 2
    assert text.startswith("w0 w1 w2 w3 w4")
