"""A gateway's pages in a real browser: figures, slider, filters, keys, and names that are markup.

A scripted fleet stands behind them. Next: scripted_fleet.py, fleet_site.py.
"""

import json
from collections.abc import Iterator

import pytest

from tests.flow.browser import Browser, Page, find_browser, running_browser
from tests.flow.fleet_site import KEYS, FleetSite, fleet_site
from tests.flow.scripted_fleet import MARKUP, ScriptedPolicy, ScriptedRecords

PROGRAM = find_browser()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with running_browser(PROGRAM, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def site() -> Iterator[FleetSite]:
    with fleet_site(ScriptedPolicy(), ScriptedRecords(), has_keys=True) as site:
        yield site


def look(browser: Browser, site: FleetSite, name: str, key: str = "ali", **window: int) -> Page:
    page = browser.open(site.address, **window)  # type: ignore[arg-type]
    value = json.dumps(json.dumps(KEYS[key]))
    page.evaluate(f"localStorage.setItem('moestro.key', {value})")
    page.complaints.clear()
    page.go(site.address + name)
    page.wait("!!document.querySelector('main h1')")
    return page


def wait_text(page: Page, text: str, where: str = "main") -> None:
    page.wait(f"document.querySelector('{where}')?.innerText.includes({json.dumps(text)})")


def complaints(page: Page) -> list[str]:
    # The first load, before the browser has the key, is refused.
    return [each for each in page.complaints if "401" not in each]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("fleet", "3 of 4 servers up"),
        ("policy", "Keeps at least 0.95"),
        ("ledger", "gain 0.31 over 0.11"),
        ("keys", "$43.10 of $50.00"),
    ],
)
def test_each_page_shows_its_figures_and_markup_stays_text(
    browser: Browser, site: FleetSite, name: str, text: str
) -> None:
    page = look(browser, site, name)
    wait_text(page, text)
    if name != "policy":
        wait_text(page, MARKUP)
    assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0
    assert page.evaluate("document.title") == f"{name.title()} - Moestro"
    assert complaints(page) == []
    assert all(url.startswith((site.address, "data:")) for url in page.urls)


def test_a_model_that_stands_for_others_has_no_experts_and_is_not_asked_for_them(
    browser: Browser, site: FleetSite
) -> None:
    # `auto` is what is chosen at first, and the page said in red that it is not served.
    page = look(browser, site, "experts")
    wait_text(page, "No experts to show")
    assert page.evaluate("document.querySelector('.fault').hidden")
    assert not [url for url in page.urls if "ui/experts" in url]
    assert complaints(page) == []


def test_the_fleet_is_live(browser: Browser, site: FleetSite) -> None:
    page = look(browser, site, "fleet")
    page.wait("document.querySelector('.tile .value')?.innerText.match(/[1-9].* .s/)")
    page.wait("document.querySelector('.spark path')?.getAttribute('d').includes('L')")
    wait_text(page, "left alone for 14.2 s")


def test_another_floor_shows_what_it_costs(browser: Browser, site: FleetSite) -> None:
    page = look(browser, site, "policy")
    wait_text(page, "per 1,000 requests", ".two .facts")
    before = page.text(".two .facts")
    num_asked = len([url for url in page.urls if "/ui/" in url and "?" not in url])
    page.evaluate(
        "(() => { const s = document.querySelector('#floor'); s.value = 100;"
        " s.dispatchEvent(new Event('input')); })()"
    )
    after = page.text(".two .facts")
    assert "100 %" in after
    assert "$1.34" in after
    assert "0 %" in after
    assert after != before
    assert "--floor 1.0" in page.text(".two .command")
    # The figures came with the click, from the page's own copy of the curve.
    assert len([url for url in page.urls if "/ui/" in url and "?" not in url]) <= num_asked + 1


def test_a_lost_floor_is_said_with_the_command(browser: Browser) -> None:
    with fleet_site(ScriptedPolicy(is_held=False), ScriptedRecords()) as site:
        page = browser.open(f"{site.address}policy")
        page.wait("document.querySelector('.callout[role=alert]')?.checkVisibility()")
        assert "The floor was lost" in page.text(".callout[role=alert]")
        assert "moestro policy calibrate policies/mine" in page.text(".callout .command")


def test_a_writer_that_ended_is_said_with_how_often(browser: Browser) -> None:
    with fleet_site(records=ScriptedRecords(num_restarts=3)) as site:
        page = browser.open(f"{site.address}fleet")
        page.wait("document.querySelector('.callout[role=status]')?.checkVisibility()")
        said = page.text(".callout[role=status]")
        assert "has ended 3 times since the start and was started again" in said
        assert "None was lost" in said
        assert page.evaluate("document.querySelector('.callout').dataset.tone") == ""
    with fleet_site(records=ScriptedRecords(is_broken=True, num_restarts=1)) as site:
        page = browser.open(f"{site.address}fleet")
        page.wait("document.querySelector('.callout[role=status]')?.checkVisibility()")
        said = page.text(".callout[role=status]")
        assert "disk full" in said
        assert "ended once" in said
        assert "12 were lost" in said


def test_what_is_not_known_is_said_to_be(browser: Browser) -> None:
    with fleet_site(ScriptedPolicy(has_costs=False, has_floor=False)) as site:
        page = browser.open(f"{site.address}policy")
        wait_text(page, "No floor is set.")
        wait_text(page, "the policy knows no prices")
        assert "NaN" not in page.text("main")
        page.click("nav [data-view=ledger]")
        wait_text(page, "No records are kept")
        page.click("nav [data-view=keys]")
        wait_text(page, "No records are kept")
    with fleet_site() as site:
        page = browser.open(f"{site.address}policy")
        wait_text(page, "No policy yet")


def test_filters_choose_and_pages_turn(browser: Browser, site: FleetSite) -> None:
    page = look(browser, site, "ledger")
    page.wait("document.querySelectorAll('.records tbody tr').length === 50")
    page.evaluate(
        "[...document.querySelectorAll('button')].find(b => b.innerText === 'Older').click()"
    )
    page.wait("document.querySelector('time[title*=\"request-350\"]') !== null")
    page.write("#filter-model", "large")
    page.write("#filter-reason", "OVER 0.11")
    page.wait(
        "(r => r.length && r.every(e => e.innerText.includes('over 0.11')))"
        "([...document.querySelectorAll('.records tbody tr')])"
    )
    assert any("model=large" in url and "reason=OVER" in url for url in page.urls)
    page.write("#filter-key", "nobody")
    wait_text(page, "No decision fits these filters.")


def test_a_filter_written_before_the_last_ones_answer_came_is_followed(
    browser: Browser, site: FleetSite
) -> None:
    page = look(browser, site, "ledger")
    page.wait("document.querySelectorAll('.records tbody tr').length === 50")
    page.evaluate("document.querySelector('main .apart input[type=checkbox]').click()")
    page.evaluate(
        "(() => { const real = window.fetch; window.held = []; window.fetch = async (...asked) => {"
        " const answer = await real(...asked); const url = String(asked[0]?.url ?? asked[0]);"
        " if (url.includes('ui/ledger?model=large') && !url.includes('reason='))"
        " await new Promise(go => window.held.push(go)); return answer; }; })()"
    )
    page.write("#filter-model", "large")
    page.wait("window.held.length > 0")
    page.write("#filter-reason", "OVER 0.11")
    page.evaluate("window.held.forEach(go => go())")
    page.wait(
        "(r => r.length && r.every(e => e.innerText.includes('over 0.11')))"
        "([...document.querySelectorAll('.records tbody tr')])"
    )


def test_a_key_that_is_no_admins_sees_its_own_and_no_keys(
    browser: Browser, site: FleetSite
) -> None:
    page = look(browser, site, "ledger", "app")
    wait_text(page, "These are the requests of your key, app")
    assert not page.evaluate("document.querySelector('.records').innerText.includes('ali')")
    page.click("nav [data-view=keys]")
    wait_text(page, "For admins only")


def test_a_key_is_made_shown_once_and_revoked_after_a_question(
    browser: Browser, site: FleetSite
) -> None:
    page = look(browser, site, "keys")
    wait_text(page, "$43.10 of $50.00")
    page.click("main .primary")
    page.write("#key-name", "nightly <b>")
    page.write("#terms-budget_usd", "2.5")
    page.press("Enter")
    wait_text(page, "mk-made-once", "dialog[open]")
    assert page.bodies[-1] == {
        "name": "nightly <b>", "budget_period": "month", "is_admin": False, "budget_usd": 2.5,
    }  # fmt: skip
    page.press("Enter")
    page.wait("!document.querySelector('dialog[open]')")
    wait_text(page, "$0 of $2.50")
    assert "mk-made-once" not in page.evaluate("document.body.innerText")
    page.click("[data-revoke='nightly <b>']")
    wait_text(page, "Revoke this key?", "dialog[open]")
    # The harmless answer has the focus.
    page.press("Enter")
    page.wait("!document.querySelector('dialog[open]')")
    assert site.records is not None
    assert site.records.views["nightly <b>"].is_usable
    page.click("[data-revoke='nightly <b>']")
    page.click("dialog[open] .danger")
    wait_text(page, "revoked")
    assert not site.records.views["nightly <b>"].is_usable


def test_a_chat_with_auto_says_who_answered(browser: Browser) -> None:
    with fleet_site() as site:
        page = browser.open(site.address)
        page.wait("document.querySelector('#model')?.value === 'auto'")
        page.write(".composer textarea", "How many?")
        page.press("Enter")
        page.wait("document.querySelector('.reply')?.innerText === 'Two of them.'")
        assert page.bodies[-1]["model"] == "auto"
        assert not {"xray", "logprobs"} & set(page.bodies[-1])
        wait_text(page, "answered by auto", ".speed")
        assert page.complaints == []


@pytest.mark.parametrize("name", ["fleet", "policy", "ledger", "keys"])
def test_no_page_of_a_fleet_is_wider_than_a_phone(
    browser: Browser, site: FleetSite, name: str
) -> None:
    page = look(browser, site, name, width=375, height=740)
    page.wait("!!document.querySelector('main .page .page:not([hidden])')")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_a_server_of_one_model_has_no_page_of_a_fleet(browser: Browser, site: FleetSite) -> None:
    page = look(browser, site, "fleet")
    shown = "[...document.querySelectorAll('nav a')].filter(a => !a.hidden).map(a => a.innerText)"
    assert page.evaluate(shown) == ["Chat", "Fleet", "Policy", "Ledger", "Keys"]
