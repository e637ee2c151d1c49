"""A gateway's feeds: what they tell to whom, and which changes they take.

Next: ../../flow/test_fleet_pages.py, where a browser uses them.
"""

import asyncio
import csv
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from moestro.server import errors
from moestro.server.refusal import DIALECTS
from moestro.ui.fleet_pages import mount_fleet
from tests.flow.scripted_fleet import ScriptedFleet, ScriptedPolicy, ScriptedRecords

ADMIN = {"authorization": "Bearer x", "x-name": "ali"}


def build(records: ScriptedRecords | None, admins: tuple[str, ...] = ()) -> FastAPI:
    app = FastAPI()
    errors.install(app, DIALECTS)
    mount_fleet(app, ScriptedFleet(), policy=ScriptedPolicy(), records=records, admins=admins)

    @app.middleware("http")
    async def name(request: Request, call_next: Any) -> Any:
        request.scope.setdefault("state", {})["key_name"] = request.headers.get("x-name", "")
        return await call_next(request)

    return app


def send(
    app: FastAPI, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://pages") as client:
            if body is None:
                return await client.get(path, headers=headers)
            return await client.post(path, json=body, headers=headers)

    return asyncio.run(run())


def test_the_fleet_and_the_policy_are_told_as_they_are() -> None:
    app = build(None)
    fleet = send(app, "/ui/fleet").json()
    assert [each["name"] for each in fleet["fleet"]["models"]][:2] == ["small", "large"]
    assert fleet["records"] is None
    policy = send(app, "/ui/policy").json()
    assert len(policy["policy"]["curve"]) == 21
    assert set(policy["live"]) == {"small", "large"}


def test_a_gateway_without_records_says_so() -> None:
    app = build(None)
    assert send(app, "/ui/ledger").json()["is_kept"] is False
    for path in ("/ui/usage", "/ui/keys", "/ui/ledger.csv"):
        answer = send(app, path)
        assert (answer.status_code, "[records]" in answer.text) == (404, True)


def test_records_that_cannot_be_read_are_a_503_and_the_fleet_is_still_told() -> None:
    app = build(ScriptedRecords(is_broken=True))
    for path in ("/ui/ledger", "/ui/usage"):
        assert send(app, path).status_code == 503
    assert send(app, "/ui/fleet").json()["records"]["lost_records"] == 12


def test_pages_of_decisions_meet_without_gap_or_overlap() -> None:
    app = build(ScriptedRecords(400))
    seen: list[int] = []
    before: int | None = None
    while True:
        at = "" if before is None else f"&before={before}"
        page = send(app, f"/ui/ledger?limit=30&reason=OVER{at}").json()
        seen += [each["id"] for each in page["decisions"]]
        before = page["before"]
        if before is None:
            break
    wanted = [n for n in range(400, 0, -1) if n % 4 == 0 and n % 5 and n % 50 != 1]
    assert seen == wanted


def test_a_number_that_no_row_has_is_refused_before_the_database_sees_it() -> None:
    app = build(ScriptedRecords(3))
    assert send(app, f"/ui/ledger?before={2**63 - 1}").status_code == 200
    assert send(app, f"/ui/ledger?before={2**63}").status_code in (400, 422)


def test_a_status_is_looked_for() -> None:
    found = send(build(ScriptedRecords()), "/ui/ledger?status=502&limit=200").json()["decisions"]
    assert {each["status"] for each in found} == {502}
    assert len(found) == 400 // 17


def test_hashes_of_conversations_and_requests_are_not_told() -> None:
    assert "secret" not in send(build(ScriptedRecords()), "/ui/ledger").text


def test_a_key_that_is_no_admins_sees_only_its_own() -> None:
    app, headers = build(ScriptedRecords()), {"x-name": "app"}
    page = send(app, "/ui/ledger?key=ali", headers=headers).json()
    assert {each["caller"] for each in page["decisions"]} == {"app"} == {page["only"]}
    table = send(app, "/ui/ledger.csv?key=ali", headers=headers).text
    assert {row["caller"] for row in csv.DictReader(table.splitlines())} == {"app"}
    own = send(app, "/ui/usage?key=ali", headers=headers).json()
    assert own["num_requests"] * 3 == send(app, "/ui/usage").json()["num_requests"]
    assert send(app, "/ui/keys", headers=headers).status_code == 403


def test_keys_are_for_admins_by_configuration_or_by_their_terms() -> None:
    assert send(build(ScriptedRecords()), "/ui/keys").status_code == 403
    assert send(build(ScriptedRecords()), "/ui/keys", headers=ADMIN).status_code == 200
    ops = {"x-name": "ops"}
    assert send(build(ScriptedRecords()), "/ui/keys", headers=ops).status_code == 403
    assert send(build(ScriptedRecords(), ("ops",)), "/ui/keys", headers=ops).status_code == 200


def test_a_table_can_be_opened_in_a_spreadsheet_without_running_formulas() -> None:
    records = ScriptedRecords(3)
    evil = records.all[0].record
    object.__setattr__(evil, "reason", "=HYPERLINK(1)")
    answer = send(build(records), "/ui/ledger.csv")
    rows = list(csv.DictReader(answer.text.splitlines()))
    assert rows[0]["reason"] == "'=HYPERLINK(1)"
    assert len(rows) == 3
    assert answer.headers["content-disposition"] == 'attachment; filename="ledger.csv"'


def test_a_key_is_made_once_and_revoked() -> None:
    records = ScriptedRecords()
    app = build(records)
    made = send(app, "/ui/keys", {"name": "n", "budget_usd": None, "budget_tokens": 5}, ADMIN)
    assert made.json() == {"name": "n", "key": "mk-made-once"}
    assert records.views["n"].terms.budget_tokens == 5
    assert "mk-made-once" not in send(app, "/ui/keys", headers=ADMIN).text
    assert send(app, "/ui/keys/revoke", {"name": "n"}, ADMIN).status_code == 200
    assert not records.views["n"].is_usable


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"name": "app"}, "exists"),
        ({"name": "x", "budget": 1}, "unknown setting"),
        ({"name": "x", "budget_usd": -1}, "budget_usd is -1"),
        ([1], "not an object"),
    ],
)
def test_terms_that_make_no_sense_are_one_clear_line(body: Any, says: str) -> None:
    answer = send(build(ScriptedRecords()), "/ui/keys", body, ADMIN)
    assert (answer.status_code, says in answer.json()["error"]["message"]) == (400, True)


def test_a_revocation_names_a_key() -> None:
    assert send(build(ScriptedRecords()), "/ui/keys/revoke", {}, ADMIN).status_code == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-name": "ali"}, 403),
        ({"x-name": "app", "x-api-key": "x"}, 403),
        ({**ADMIN, "content-type": "text/plain"}, 415),
        ({**ADMIN, "sec-fetch-site": "cross-site"}, 403),
        ({**ADMIN, "origin": "http://evil.example"}, 403),
        ({**ADMIN, "origin": "http://pages"}, 200),
        ({**ADMIN, "sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_a_change_comes_from_this_servers_page_with_an_admins_key(
    headers: dict[str, str], status: int
) -> None:
    records = ScriptedRecords()
    answer = send(build(records), "/ui/keys", {"name": "made"}, headers)
    assert (answer.status_code, "made" in records.views) == (status, status == 200)


def test_a_change_is_json() -> None:
    async def run() -> int:
        transport = httpx.ASGITransport(build(ScriptedRecords()))
        async with httpx.AsyncClient(transport=transport, base_url="http://pages") as client:
            headers = {**ADMIN, "content-type": "application/json"}
            return (await client.post("/ui/keys", content=b"{", headers=headers)).status_code

    assert asyncio.run(run()) == 400
