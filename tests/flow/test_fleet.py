"""`moestro serve fleet.toml` as a user starts it: local models behind workers that share a port."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import tomli_w

from moestro.records.config import RecordsConfig
from moestro.records.database import Database
from tests.flow.processes import children_of
from tests.flow.program import TIMEOUT_S, fork, start

PRICE = {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0}


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def write(path: Path, model: Path, *names: str, **tables: object) -> None:
    models = [{"name": name, "path": str(model), "price": PRICE} for name in names]
    records = {"url": f"sqlite:///{path.parent}/records.db"}
    path.write_text(tomli_w.dumps({"models": models, "records": records, "workers": 2, **tables}))


@contextmanager
def serving(
    file: Path, is_ready: Callable[[str], bool] | None = None
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    is_ready = is_ready or answers
    with start("serve", file, "--port", "0", cwd=file.parent) as process:
        assert process.stderr is not None
        try:
            found = re.search(r"at (http://\S+)/v1$", process.stderr.readline().strip())
            assert found
            until(lambda: is_ready(found[1]))
            yield process, found[1]
        finally:
            process.kill()


def answers(url: str) -> bool:
    try:
        return ask(url, "a").status_code == 200
    except httpx.TransportError:
        return False


def ask(url: str, model: str) -> httpx.Response:
    body = {"model": model, "prompt": "alpha", "max_tokens": 3}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=TIMEOUT_S)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_fleet_serves_reloads_outlives_its_processes_and_ends(
    model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "fleet.toml"
    write(file, model, "a", "b")
    with serving(file) as (process, url):
        answer = ask(url, "a")
        assert answer.headers["x-moestro-model"] == "a"
        cards = {
            card.id: card for card in openai.OpenAI(base_url=f"{url}/v1", api_key="-").models.list()
        }
        assert cards["a"].to_dict()["output_usd_per_mtok"] == 2.0
        assert cards["a"].to_dict()["most_experts"] > 0
        assert "not served here" in ask(url, "c").text
        check_what_a_model_of_text_can_do(url)

        # Another configuration, while a stream goes on.
        write(file, model, "a", "c")
        body = {
            "model": "b",
            "prompt": "alpha",
            "max_tokens": 12,
            "stream": True,
            "ignore_eos": True,
        }
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=TIMEOUT_S) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGHUP)
            until(lambda: ask(url, "c").status_code == 200)
            assert list(lines)[-2] == "data: [DONE]"
        until(lambda: ask(url, "b").status_code == 404)

        # A mistake leaves it as it was.
        file.write_text("workers = 0")
        process.send_signal(signal.SIGHUP)
        # One worker may have found it loading, and leave it alone for a moment.
        until(lambda: all(ask(url, "c").status_code == 200 for _ in range(4)))

        for child in children_of(process.pid):
            kill(child)
        until(lambda: answers(url))
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0
        assert process.stderr is not None
        assert "stays as it was" in process.stderr.read()


def check_what_a_model_of_text_can_do(url: str) -> None:
    shown = {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1:1/a.png"}}
    turn: Any = {"role": "user", "content": "alpha beta"}
    image: Any = {"role": "user", "content": [shown]}
    with anthropic.Anthropic(base_url=url, api_key="-", max_retries=0) as client:
        counted = client.messages.count_tokens(model="a", messages=[turn]).input_tokens
        answer = client.messages.create(model="a", messages=[turn], max_tokens=2)
        assert counted == answer.usage.input_tokens > 0
        with pytest.raises(anthropic.BadRequestError, match="this model reads text only"):
            client.messages.create(model="a", messages=[image], max_tokens=2)
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as asking,
        pytest.raises(openai.BadRequestError, match="a/0 makes no embeddings"),
    ):
        asking.embeddings.create(model="a", input="alpha")
    tokens = httpx.post(f"{url}/tokenize", json={"model": "a", "messages": [turn]}).json()
    assert tokens["count"] == counted
    text = {"model": "a", "tokens": tokens["tokens"]}
    assert "alpha beta" in httpx.post(f"{url}/detokenize", json=text).json()["prompt"]


def kill(pid: int) -> None:
    # multiprocessing's own helper among them, which may be gone already.
    if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
        os.kill(pid, signal.SIGKILL)


ONE = {"name": "a", "path": "x"}
KEYED = {"url": "http://a/v1", "key": "env:NOT_SET_1"}


def test_a_database_of_a_newer_program_gets_one_line_and_no_worker(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    with closing(Database(RecordsConfig(url=f"sqlite:///{path}"))) as database:
        database.open()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE moestro_schema SET version = 99")
        connection.commit()
    models = [{"name": "a", "backends": [{"url": "http://127.0.0.1:1/v1"}]}]
    tables = {"models": models, "records": {"url": f"sqlite:///{path}"}, "workers": 2}
    (tmp_path / "fleet.toml").write_text(tomli_w.dumps(tables))
    said = fork("serve", "fleet.toml", "--port", "0", cwd=tmp_path).complaint()
    assert "has version 99" in said
    assert "update Moestro, or use another database" in said


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([ONE, ONE], "two have the name a"),
        ([{"name": "a", "pth": "x"}], "pth: unknown setting. hint: path"),
        ([{"name": "a", "backends": [KEYED]}], "NOT_SET_1"),
        ([ONE | {"path": "nowhere"}], "nowhere"),
        ([ONE | {"price": {"input_usd_per_mtok": -1}}], "a price is 0"),
    ],
)
def test_a_mistake_in_a_fleet_gets_one_line(
    tmp_path: Path, models: list[dict[str, object]], message: str
) -> None:
    (tmp_path / "fleet.toml").write_text(tomli_w.dumps({"models": models}))
    assert message in fork("serve", "fleet.toml", "--port", "0", cwd=tmp_path).complaint()
