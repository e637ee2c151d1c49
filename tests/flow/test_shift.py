"""`moestro serve` with a policy, and traffic that the policy was not made for: two real workers.

The guard for unfamiliar prompts is off here, so that it is the watch that is seen at work.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tomli_w

from moestro.policy.build import build_pair
from moestro.policy.calibrate import calibrate
from moestro.policy.guarantee import Promise
from moestro.policy.store import save_policy
from tests.flow.json_upstream import json_upstream
from tests.flow.test_fleet import serving
from tests.unit.policy.made_outcomes import make_outcomes

WITHIN = 300
FAMILIAR = 2000
SHIFTED = "traffic shifted"


def answer(asked: dict[str, Any]) -> object:
    """Be any model: say its name."""
    message = {"role": "assistant", "content": asked["model"]}
    choice = {"index": 0, "message": message, "text": "", "finish_reason": "stop"}
    return {"id": "c", "object": "o", "model": asked["model"], "choices": [choice]}


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with json_upstream(answer) as url:
        yield url


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    pair = build_pair(make_outcomes(600, seed=1), "small", "large", {})
    pair = calibrate(pair, make_outcomes(1000, seed=2), Promise(floor=0.9))
    encoder = replace(pair.estimator.encoder, far=1e9)
    save_policy(replace(pair, estimator=replace(pair.estimator, encoder=encoder)), folder)
    return folder


@contextmanager
def gateway(folder: Path, upstream: str, policy: Path) -> Iterator[str]:
    # "a" is what `serving` asks for to know that all is up.
    models = [{"name": name, "backends": [{"url": upstream}]} for name in ("a", "small", "large")]
    records = {"url": f"sqlite:///{folder}/records.db"}
    tables = {"models": models, "records": records, "workers": 2, "policy": {"path": str(policy)}}
    (folder / "fleet.toml").write_text(tomli_w.dumps(tables))
    with serving(folder / "fleet.toml") as (process, url):
        # A line for each request: nobody who reads them would stop the workers.
        reader = threading.Thread(target=process.communicate)
        reader.start()
        yield url
        process.terminate()
        reader.join()


def foreign(num: int) -> list[str]:
    """Word problems, which neither model was ever seen at."""
    draw = np.random.default_rng(9)
    return [
        f"A farmer sells {draw.integers(100)} eggs at {draw.integers(9)} cents and buys"
        f" {draw.integers(20)} hens for {draw.integers(50)} dollars. How much is left?"
        for _ in range(num)
    ]


def ask_each(url: str, prompts: Sequence[str]) -> list[tuple[str, str]]:
    """Ask `auto`, four at once; return who answered and why, in the order of the answers."""
    answers: list[tuple[str, str]] = []

    def ask(prompt: str) -> None:
        body = {"model": "auto", "messages": [{"role": "user", "content": prompt}]}
        answer = client.post(f"{url}/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        answers.append((answer.headers["x-moestro-model"], answer.headers["x-moestro-reason"]))

    with httpx.Client(timeout=30) as client, ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, prompts))
    return answers


def wait_for(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_foreign_traffic_goes_to_the_strongest_within_300_requests_and_all_is_told_of_it(
    tmp_path: Path, upstream: str, policy: Path
) -> None:
    with gateway(tmp_path, upstream, policy) as url:
        answers = ask_each(url, foreign(WITHIN))
        reasons = [reason for _, reason in answers]
        assert "small" in [model for model, _ in answers]
        assert SHIFTED in reasons
        first = reasons.index(SHIFTED)
        assert first < WITHIN - 50
        # Both workers know within moments, and nothing brings it back.
        assert set(answers[-20:]) == {("large", SHIFTED)}
        assert set(ask_each(url, make_outcomes(40, seed=3).prompts)) == {("large", SHIFTED)}
        metrics = httpx.get(f"{url}/metrics").text
        assert "moestro:gateway_traffic_held 0.0" in metrics
        assert "moestro:gateway_floor_held 1.0" in metrics
        view = httpx.get(f"{url}/ui/policy").json()["policy"]
        [shift] = [each for each in view["watches"] if each["name"] == "shift"]
        assert (shift["is_held"], shift["num_observed"] <= WITHIN) == (False, True)
        assert shift["lost_at"] == pytest.approx(time.time(), abs=60)
        assert "moestro policy calibrate" in view["recalibrate"]
    # A restart does not forget it; another calibration begins anew.
    with gateway(tmp_path, upstream, policy) as url:
        assert set(ask_each(url, foreign(10))) == {("large", SHIFTED)}


@pytest.mark.slow
def test_2000_familiar_requests_do_not_alarm_and_both_workers_count_them(
    tmp_path: Path, upstream: str, policy: Path
) -> None:
    def num_observed(url: str) -> int:
        watches = httpx.get(f"{url}/ui/policy").json()["policy"]["watches"]
        [shift] = [each for each in watches if each["name"] == "shift"]
        assert shift["is_held"]
        return int(shift["num_observed"])

    with gateway(tmp_path, upstream, policy) as url:
        answers = ask_each(url, make_outcomes(FAMILIAR, seed=4).prompts)
        assert SHIFTED not in [reason for _, reason in answers]
        assert {model for model, _ in answers} == {"small", "large"}
        # Equal prompts begin equal conversations, which are decided once.
        decided = sum(reason != "conversation" for _, reason in answers)
        assert decided > FAMILIAR / 2
        wait_for(lambda: num_observed(url) == decided)
