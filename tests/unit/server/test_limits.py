"""Limits: too much is refused at once, with the time to come back, and others are not disturbed."""

import asyncio
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from moestro import settings
from moestro.errors import CapacityError, ConfigError
from moestro.server.limits import ClientLimits, Limits, LimitsConfig, format_duration
from tests.unit.server.asgi import ask, ask_async, run_raw, say_key, say_size

PATH = "/v1/chat/completions"


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the moment."""
        return self.now


class Slow:
    """An application that answers when it is told to, with `tokens` generated."""

    def __init__(self, tokens: int = 0) -> None:
        self.tokens = tokens
        self.gate = asyncio.Event()
        self.num_inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait, then answer."""
        self.num_inside += 1
        await self.gate.wait()
        scope.setdefault("state", {})["generated_tokens"] = self.tokens
        await say_key(scope, receive, send)


def limits(clock: Clock, app: Any = say_key, **each: int) -> Limits:
    return Limits(app, LimitsConfig(each=ClientLimits(**each)), clock=clock)


def test_requests_beyond_the_rate_are_refused_until_the_bucket_refills() -> None:
    clock = Clock()
    app = limits(clock, requests_per_minute=2)
    answers = [ask(app, "POST", PATH) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    refused = answers[-1]
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert "2 requests per minute" in refused.json()["error"]["message"]
    assert refused.headers["retry-after"] == "30"
    clock.now += 30
    assert ask(app, "POST", PATH).status_code == 200


def test_what_is_left_is_told_as_openai_does() -> None:
    answer = ask(limits(Clock(), requests_per_minute=60), "POST", PATH)
    assert answer.headers["x-ratelimit-limit-requests"] == "60"
    assert answer.headers["x-ratelimit-remaining-requests"] == "59"
    assert answer.headers["x-ratelimit-reset-requests"] == "1s"


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/v1/embeddings"])
def test_whatever_asks_a_model_counts_against_its_client(path: str) -> None:
    app = limits(Clock(), requests_per_minute=1)
    assert [ask(app, "POST", path).status_code for _ in range(2)] == [200, 429]


def test_a_refusal_costs_nothing() -> None:
    clock = Clock()
    app = limits(clock, requests_per_minute=1)
    for _ in range(5):
        ask(app, "POST", PATH)
    clock.now += 60
    assert ask(app, "POST", PATH).status_code == 200


def test_anthropics_path_gets_anthropics_words() -> None:
    app = limits(Clock(), requests_per_minute=1)
    ask(app, "POST", "/v1/messages")
    assert ask(app, "POST", "/v1/messages").json()["error"]["type"] == "rate_limit_error"


def test_each_address_has_limits_of_its_own_and_a_network_counts_as_one() -> None:
    app = limits(Clock(), requests_per_minute=1)
    statuses = {
        address: asyncio.run(ask_async(app, "POST", PATH, address=address)).status_code
        for address in ("10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2", "2001:db9::1")
    }
    assert [address for address, status in statuses.items() if status == 429] == ["2001:db8::2"]


@pytest.mark.parametrize("client", [None, ("a-socket's-name", 0)])
def test_whoever_has_no_address_is_one_client(client: tuple[str, int] | None) -> None:
    app = limits(Clock(), requests_per_minute=1)
    scope = {"path": PATH, "client": client}
    sent = [asyncio.run(run_raw(app, scope))[0]["status"] for _ in range(2)]
    assert sent == [200, 429]


def test_a_key_has_its_own_limits_wherever_it_comes_from() -> None:
    async def serve_as_alice(scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["key_name"] = "alice"
        await inner(scope, receive, send)

    config = LimitsConfig(
        each=ClientLimits(requests_per_minute=1),
        by_key={"alice": ClientLimits(requests_per_minute=2)},
    )
    inner = Limits(say_key, config, clock=Clock())
    statuses = [
        asyncio.run(ask_async(serve_as_alice, "POST", PATH, address=address)).status_code
        for address in ("10.0.0.1", "10.0.0.2", "10.0.0.3")
    ]
    assert statuses == [200, 200, 429]
    assert ask(inner, "POST", PATH).status_code == 200


def test_only_so_many_requests_of_a_client_are_under_way() -> None:
    async def run() -> list[int]:
        slow = Slow()
        app = limits(Clock(), slow, concurrent_requests=1)
        first = asyncio.create_task(ask_async(app, "POST", PATH))
        while not slow.num_inside:
            await asyncio.sleep(0)
        refused = await ask_async(app, "POST", PATH)
        slow.gate.set()
        other = await ask_async(app, "POST", PATH, address="10.0.0.9")
        done = await first
        again = await ask_async(app, "POST", PATH)
        assert refused.headers["retry-after"] == "1"
        return [each.status_code for each in (refused, other, done, again)]

    assert asyncio.run(run()) == [429, 200, 200, 200]


def test_generated_tokens_are_paid_for_afterwards() -> None:
    clock = Clock()

    async def run() -> tuple[httpx.Response, ...]:
        app = Slow(tokens=90)
        app.gate.set()
        guarded = limits(clock, app, tokens_per_minute=60)
        first = await ask_async(guarded, "POST", PATH)
        second = await ask_async(guarded, "POST", PATH)
        clock.now += 31
        return first, second, await ask_async(guarded, "POST", PATH)

    first, second, third = asyncio.run(run())
    assert [first.status_code, second.status_code, third.status_code] == [200, 429, 200]
    assert first.headers["x-ratelimit-remaining-tokens"] == "60"
    assert second.headers["retry-after"] == "31"
    assert "60 generated tokens per minute" in second.json()["error"]["message"]


def test_a_request_that_fails_still_leaves() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise OSError("the disk is gone")

    app = limits(Clock(), fail, concurrent_requests=1)
    for _ in range(3):
        with pytest.raises(OSError, match="disk"):
            ask(app, "POST", PATH)


def test_the_server_as_a_whole_has_a_limit_that_health_checks_pass() -> None:
    async def run() -> list[int]:
        slow = Slow()
        app = Limits(slow, LimitsConfig(max_open_requests=1), clock=Clock())
        first = asyncio.create_task(ask_async(app, "GET", "/docs"))
        while not slow.num_inside:
            await asyncio.sleep(0)
        refused = await ask_async(app, "GET", "/docs", address="10.0.0.9")
        slow.gate.set()
        answers = [refused, await ask_async(app, "GET", "/health"), await first]
        return [answer.status_code for answer in answers]

    assert asyncio.run(run()) == [429, 200, 200]


def test_pages_do_not_count_against_a_client() -> None:
    app = limits(Clock(), requests_per_minute=1)
    assert [ask(app, "GET", "/docs").status_code for _ in range(3)] == [200, 200, 200]


def test_memory_is_bounded_whoever_comes() -> None:
    config = LimitsConfig(each=ClientLimits(requests_per_minute=1), max_known_clients=8)
    app = Limits(say_size, config, clock=Clock())

    async def run() -> None:
        for number in range(50):
            await ask_async(app, "POST", PATH, address=f"10.0.0.{number}")

    asyncio.run(run())
    assert len(app._clients) == 8


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.1201, "121ms"), (1, "1s"), (1.5, "1.5s"), (60, "1m0s"), (3661.5, "61m1.5s")],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute"])
def test_a_limit_of_nothing_is_a_mistake(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0"):
        ClientLimits(**{name: 0})


@pytest.mark.parametrize("name", ["max_open_requests", "max_known_clients"])
def test_a_server_for_nobody_is_a_mistake(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0"):
        LimitsConfig(**{name: 0})


def test_limits_stand_in_a_configuration() -> None:
    tables = {"each": {"requests_per_minute": 5}, "by_key": {"ci": {"concurrent_requests": 2}}}
    config = settings.build(LimitsConfig, tables)
    assert config.each.requests_per_minute == 5
    assert config.by_key["ci"].concurrent_requests == 2


def test_of_many_at_once_those_without_a_place_are_refused_before_the_rest_is_read() -> None:
    slow = Slow()
    seen: list[int] = []

    def check_room(num_before: int) -> None:
        if slow.num_inside + num_before >= 2:
            seen.append(slow.num_inside)
            raise CapacityError("2 requests are waiting, limit 2: try again in 3 s", 3.0)

    async def work() -> list[httpx.Response]:
        app = Limits(slow, LimitsConfig(), check_room=check_room)
        asked = [asyncio.ensure_future(ask_async(app, "POST", PATH)) for _ in range(5)]
        done: set[asyncio.Future[httpx.Response]] = set()
        while len(done) < 3:
            finished, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            done |= finished
            await asyncio.sleep(0)
        slow.gate.set()
        return list(await asyncio.gather(*asked))

    answers = asyncio.run(work())
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["retry-after"] == "3"
    # Nobody had got past the turnstile yet.
    assert seen == [0, 0, 0]
