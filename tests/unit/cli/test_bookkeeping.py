"""Records as a worker's gateway sees them: who may begin, whose key it is, what was asked before.

Next: test_floor_watch.py.
"""

import asyncio
import hashlib
from collections.abc import Callable

import pytest

from moestro.api.key_terms import KeyTerms
from moestro.cli.bookkeeping import FleetKeys, KeptAnswers, RecordsDoor, SharedBackends
from moestro.errors import CapacityError, ForbiddenError, QuotaError
from moestro.gateway.books import AnswerBound
from moestro.gateway.breaker import Breaker
from moestro.gateway.fleet import Price
from moestro.gateway.remembering import Kept
from moestro.gateway.trace import Settle
from moestro.records.config import CacheConfig
from moestro.records.records import Records
from moestro.records.view import View
from moestro.server.keys import Keys, KeysConfig
from tests.unit.records.made import make_record

StartRecords = Callable[..., Records]
NO_PRICE = Price()
BODY = {"model": "auto", "temperature": 0, "prompt": "x"}


def with_key(records: Records, terms: KeyTerms) -> bytes:
    key = asyncio.run(View(records).add_key(terms)).encode()
    records.poll.refresh()
    return key


def admit(
    door: RecordsDoor, caller: str | None = "alice", model: str = "small", **of: int
) -> Settle | None:
    answer = AnswerBound(max_tokens=of.get("max_tokens"), price=NO_PRICE)
    return door.admit(caller, model, num_prompt=of.get("num_prompt", 10), answer=answer)


def test_a_keys_models_and_budget_decide_who_may_begin(start_records: StartRecords) -> None:
    records = start_records()
    terms = KeyTerms(name="alice", allowed_models=("small",), budget_tokens=100)
    with_key(records, terms)
    door = RecordsDoor(records)
    with pytest.raises(ForbiddenError, match="may not use large"):
        admit(door, model="large", max_tokens=1)
    with pytest.raises(QuotaError):
        admit(door, num_prompt=60, max_tokens=60)
    admit(door, num_prompt=30, max_tokens=60)
    with pytest.raises(QuotaError):
        admit(door, num_prompt=30, max_tokens=60)


def test_an_answer_without_a_limit_is_taken_to_be_as_long_as_configured(
    start_records: StartRecords,
) -> None:
    records = start_records(assumed_answer_tokens=50)
    with_key(records, KeyTerms(name="alice", budget_tokens=70))
    door = RecordsDoor(records)
    admit(door)
    with pytest.raises(QuotaError):
        admit(door)


def test_what_costs_nothing_needs_no_budget_but_a_turn(start_records: StartRecords) -> None:
    records = start_records()
    terms = KeyTerms(name="alice", budget_tokens=100, concurrent_requests=2)
    with_key(records, terms)
    door = RecordsDoor(records)
    admit(door, num_prompt=30, max_tokens=60)
    with pytest.raises(QuotaError):
        admit(door, num_prompt=30, max_tokens=60)
    door.admit("alice", "small", num_prompt=30, answer=None)
    with pytest.raises(CapacityError):
        door.admit("alice", "small", num_prompt=30, answer=None)


def test_what_a_request_cost_is_what_its_price_says(start_records: StartRecords) -> None:
    records = start_records()
    with_key(records, KeyTerms(name="alice", budget_usd=1.0))
    answer = AnswerBound(max_tokens=600_000, price=Price(output_usd_per_mtok=2))
    with pytest.raises(QuotaError):
        RecordsDoor(records).admit("alice", "small", num_prompt=0, answer=answer)


def test_a_finished_request_gives_back_what_it_held(start_records: StartRecords) -> None:
    records = start_records()
    with_key(records, KeyTerms(name="alice", budget_tokens=100))
    door = RecordsDoor(records)
    settle = admit(door, num_prompt=30, max_tokens=60)
    with pytest.raises(QuotaError):
        admit(door, num_prompt=30, max_tokens=60)
    assert settle is not None
    settle(make_record(prompt_tokens=1, completion_tokens=1, cost_usd=0))
    admit(door, num_prompt=30, max_tokens=60)


def test_the_record_of_a_request_that_was_refused_gives_back_nothing(
    start_records: StartRecords,
) -> None:
    records = start_records()
    with_key(records, KeyTerms(name="alice", concurrent_requests=1))
    door = RecordsDoor(records)
    admit(door)
    for _ in range(2):
        with pytest.raises(CapacityError):
            admit(door)
        # Under the id of the one under way: clients choose it.
        door.finish(make_record(outcome="refused", model=""), prompt="p", answer="")


def test_who_has_no_key_here_has_no_limits(start_records: StartRecords) -> None:
    door = RecordsDoor(start_records())
    # Nothing is held, so there is nothing to settle.
    assert admit(door, caller=None) is None
    assert admit(door, caller="configured elsewhere", max_tokens=10**9) is None


def test_keys_of_the_configuration_and_of_the_records_both_open(
    start_records: StartRecords,
) -> None:
    records = start_records()
    nobody = FleetKeys(Keys(KeysConfig()), records)
    assert not nobody
    digest = hashlib.sha256(b"configured").hexdigest()
    keys = FleetKeys(Keys(KeysConfig(allowed={"bob": f"sha256:{digest}"})), records)
    assert keys
    assert keys.find_name([b"configured"]) == "bob"
    assert keys.find_name([b"unknown"]) is None
    key = with_key(records, KeyTerms(name="alice"))
    assert nobody
    assert keys.find_name([key]) == nobody.find_name([key]) == "alice"
    late = with_key(records, KeyTerms(name="late", expires_at=1.0))
    assert keys.has_expired([late])
    assert not keys.has_expired([key, b"configured", b"unknown"])


def test_workers_share_places_and_breakers(start_records: StartRecords) -> None:
    shared = start_records().shared
    one, other = (SharedBackends(shared) for _ in range(2))
    assert one.read_breaker("m/0") == Breaker()
    assert one.try_enter("m/0", 1)
    assert not other.try_enter("m/0", 1)
    assert other.num_in_flight("m/0") == 1
    one.leave("m/0")
    assert other.try_enter("m/0", 1)
    breaker = Breaker(num_row=3, num_good=1, num_bad=4, window_at=2.5, open_until=9.5, num_trips=1)
    one.change_breaker("m/0", lambda before: breaker)
    assert other.read_breaker("m/0") == breaker


def build_answers(records: Records) -> KeptAnswers:
    return KeptAnswers(records.remembered, records.config.cache.max_answer_bytes)


def test_an_answer_is_kept_and_found_with_its_mark(start_records: StartRecords) -> None:
    records = start_records(cache=CacheConfig(enabled=True, max_answer_bytes=99))
    answers = build_answers(records)
    name = answers.name("/v1/completions", BODY, "small", "alice")
    assert name is not None

    async def work() -> Kept | None:
        assert await answers.find(name) is None
        answers.keep(name, Kept(body=b"said", headers={"content-type": "text/plain"}))
        async with asyncio.timeout(20):
            while (found := await answers.find(name)) is None:
                await asyncio.sleep(0.01)
        return found

    headers = {"content-type": "text/plain", "x-moestro-cache": "hit"}
    assert asyncio.run(work()) == Kept(body=b"said", headers=headers)
    assert answers.max_answer_bytes == 99
    assert records.health().cache["hits"] == 1


def test_what_may_differ_has_no_name(start_records: StartRecords) -> None:
    answers = build_answers(start_records(cache=CacheConfig(enabled=True)))
    assert answers.name("/v1/completions", {**BODY, "temperature": 1}, "small", None) is None
