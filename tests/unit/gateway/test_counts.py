"""What is counted of answers: numbers that no answer has are not believed, none is too long.

Next: test_books.py.
"""

import json
from typing import Any

import pytest

from moestro.cli.bookkeeping import RecordsDoor
from moestro.gateway.events import DONE, write_event
from moestro.records.config import RecordsConfig
from moestro.records.records import Records
from tests.unit.gateway.test_books import NotingDoor
from tests.unit.gateway.test_failover import run
from tests.unit.gateway.upstreams import WORDS, Asking, answer_of, events_of, gateway_over, well

NO_COUNTS = (-7, 10**12, 10**40)


@pytest.mark.parametrize("number", NO_COUNTS)
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_number_of_tokens_that_no_answer_has_is_not_believed(
    number: int, is_stream: bool
) -> None:
    usage = {
        "prompt_tokens": number,
        "completion_tokens": number,
        "prompt_tokens_details": {"cached_tokens": number},
    }

    async def lies(asking: Asking) -> None:
        if not is_stream:
            await asking.whole(answer_of(asking.body) | {"usage": usage})
            return
        *said, _ = events_of(asking.body)
        await asking.events([*said, write_event({"choices": [], "usage": usage}), DONE])
        await asking.end()

    async def work() -> Any:
        async with gateway_over({"m": [lies]}) as running:
            await (running.stream() if is_stream else running.ask())
            return running.records[0]

    record = run(work())
    assert 0 < record.prompt_tokens < 100
    assert 0 < record.completion_tokens <= WORDS
    assert record.cached_tokens == 0
    assert record.cost_usd > 0
    assert record.is_estimated


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_whole_answer_without_usage_is_counted_by_its_text(path: str) -> None:
    async def silent(asking: Asking) -> None:
        said = answer_of(asking.body, text="a word or two " * 40)
        del said["usage"]
        said["choices"] = said["choices"] * 2
        await asking.whole(said)

    async def work() -> Any:
        async with gateway_over({"m": [silent]}) as running:
            await running.ask(path, n=2)
            return running.records[0]

    record = run(work())
    assert record.is_estimated
    assert record.completion_tokens == 2 * 40 * 14 // 4


def test_a_stream_is_not_cut_for_a_number_that_no_answer_has() -> None:
    async def lies(asking: Asking) -> None:
        first, second, *_ = events_of(asking.body)
        said = json.loads(second[6:]) | {"usage": {"prompt_tokens": 1, "completion_tokens": 10**12}}
        await asking.events([first, write_event(said)])
        asking.reset()

    async def work() -> Any:
        async with gateway_over({"m": [[lies, well]]}) as running:
            await running.stream(max_tokens=WORDS)
            return running.servers["m"][0].asked

    assert len(run(work())) == 2


@pytest.mark.parametrize("field", ["max_tokens", "n"])
def test_a_number_of_any_length_is_let_in_or_refused_and_no_fault(
    field: str, tmp_path: Any
) -> None:
    async def work() -> Any:
        records = Records(RecordsConfig(url=f"sqlite:///{tmp_path}/records.db"))
        records.start()
        try:
            around = {"door": RecordsDoor(records)}
            async with gateway_over({"m": [well]}, around=around) as running:
                return await running.ask(**{field: 10**400})
        finally:
            records.stop()

    assert run(work()).status == 200


@pytest.mark.parametrize(
    ("path", "fields", "num"),
    [
        ("/v1/chat/completions", {}, 1),
        ("/v1/chat/completions", {"n": 8}, 8),
        ("/v1/completions", {"n": 2, "prompt": ["a", "b", "c"]}, 6),
        ("/v1/completions", {"prompt": [1, 2, 3]}, 1),
        ("/v1/completions", {"prompt": [[1, 2], [3]]}, 2),
    ],
)
def test_each_of_several_answers_is_reserved(path: str, fields: dict[str, Any], num: int) -> None:
    async def work() -> Any:
        door = NotingDoor()
        async with gateway_over({"m": [well]}, around={"door": door}) as running:
            await running.ask(path, max_tokens=10, **fields)
            return door.admitted[0][3]

    bound = run(work())
    assert (bound.max_tokens, bound.num_answers) == (10, num)
