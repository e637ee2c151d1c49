"""What the workers of a fleet know together: real processes on one port, before a real server."""

import hashlib
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import tomli_w

from tests.flow.json_upstream import json_upstream
from tests.flow.test_fleet import serving

KEY = "sk-limited"
LIMIT = 20
WHOLE = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "ok"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


def answer(asked: dict[str, Any]) -> object:
    """Say two letters, after as many milliseconds as the question says."""
    time.sleep(float(asked["messages"][-1]["content"]) / 1000)
    return WHOLE


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with json_upstream(answer) as upstream:
        folder = tmp_path_factory.mktemp("fleet")
        tables = {
            "workers": 2,
            "models": [
                {
                    "name": "a",
                    "backends": [{"url": upstream}],
                }
            ],
            "records": {"url": f"sqlite:///{folder}/records.db"},
            "gateway": {"probe": {"every_s": 0}},
            "server": {
                "keys": {"allowed": {"limited": named(KEY), "free": named("sk-free")}},
                "limits": {"by_key": {"limited": {"requests_per_minute": LIMIT}}},
            },
        }
        (folder / "fleet.toml").write_text(tomli_w.dumps(tables))
        with serving(folder / "fleet.toml", answers) as (process, url):
            yield url
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def named(key: str) -> str:
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def answers(url: str) -> bool:
    try:
        return ask(url).status_code == 200
    except httpx.TransportError:
        return False


def ask(url: str, milliseconds: int = 0, key: str = "sk-free") -> httpx.Response:
    """Ask over a new connection, which any worker may take."""
    body: dict[str, Any] = {"model": "a"}
    body["messages"] = [{"role": "user", "content": str(milliseconds)}]
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=20)


@pytest.mark.slow
def test_workers_count_a_keys_limits_together(url: str) -> None:
    began = time.monotonic()
    answers = [ask(url, key=KEY) for _ in range(3 * LIMIT)]
    refilled = LIMIT * (time.monotonic() - began) / 60
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    assert LIMIT <= statuses.count(200) <= LIMIT + refilled + 1
    first, last = answers[0].headers, answers[-1].headers
    assert first["x-ratelimit-remaining-requests"] == str(LIMIT - 1)
    assert last["x-ratelimit-remaining-requests"] == "0"
    # Another key has all of its own.
    assert ask(url).status_code == 200


@pytest.mark.slow
def test_every_worker_shows_the_latencies_of_all(url: str) -> None:
    for milliseconds in [0] * 30 + [300] * 10:
        assert ask(url, milliseconds).status_code == 200
    views = []
    for _ in range(16):
        shown = httpx.get(f"{url}/ui/fleet", headers={"authorization": "Bearer sk-free"})
        [model] = shown.json()["fleet"]["models"]
        views.append((model["latency"], model["backends"][0]["latency"]))
    # Whichever worker is asked says the same.
    assert all(view == views[0] for view in views)
    assert views[0][0]["whole_p50_s"] < 0.3 <= views[0][0]["whole_p95_s"]
