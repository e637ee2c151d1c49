"""The pages in a real browser, against a real server: what a person does, and what they see.

A scripted backend answers. Next: browser.py.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest

from moestro.api.chat import CompletionRequest
from moestro.backends.recital import Script
from moestro.backends.scripted import DEFAULT_CARD, ScriptedBackend
from moestro.errors import BackendError
from moestro.server.app import build_app
from moestro.server.config import ServerConfig
from moestro.server.keys import KeysConfig
from moestro.ui.pages import OPEN_PATHS, PAGES, mount
from moestro.ui.recent import Recent
from moestro.ui.watched import Watched
from tests.flow.browser import Browser, Page, find_browser, running_browser
from tests.flow.serving import serving, wait_until

PROGRAM = find_browser()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on this machine"),
]

CODE = "    return [line for line in file]\n\n\nprint(h\u00e9las, \U0001f600)\n"
ENDLESS = Script(text="on " * 5000, delay_s=0.005)
BASE_CARD = replace(DEFAULT_CARD, id="base", has_chat_template=False)
FIELD = ".composer textarea"
PROMPT = ".editor textarea"
GO = ".actions .primary"
IS_DONE = (
    "document.querySelectorAll('.token').length && !document.querySelector('[aria-busy=true]')"
)


@dataclass(frozen=True)
class Site:
    """A server with pages, and the backend behind it."""

    address: str
    backend: ScriptedBackend


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with running_browser(PROGRAM, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@contextmanager
def site(backend: ScriptedBackend, config: ServerConfig | None = None) -> Iterator[Site]:
    recent = Recent()
    watched = Watched(backend, recent)
    app = build_app(watched, config, open_paths=OPEN_PATHS)
    mount(app, watched, recent)
    with serving(app) as address:
        yield Site(f"{address}/", backend)


def complete(page: Page, prompt: str = "def read(file):\n") -> None:
    page.write(PROMPT, prompt)
    page.click(GO)
    page.wait(IS_DONE)


def chat(page: Page, question: str) -> None:
    page.write(FIELD, question)
    page.press("Enter")


def last_request(site: Site) -> CompletionRequest:
    request = site.backend.requests[-1]
    assert isinstance(request, CompletionRequest)
    return request


def test_a_base_model_goes_on_from_a_text_and_every_character_is_kept(browser: Browser) -> None:
    with site(ScriptedBackend(CODE, cards=(BASE_CARD,))) as here:
        page = browser.open(here.address)
        complete(page)
        shown = page.evaluate("document.querySelector('.sheet').textContent")
        assert shown.replace("\u21b5", "") == "def read(file):\n" + CODE
        assert last_request(here).prompt == "def read(file):\n"
        assert "tokens/s" in page.text(".speed")
        assert "4.00 experts" in page.text(".speed")
        assert page.complaints == []
        assert all(url.startswith((here.address, "data:")) for url in page.urls)


def test_a_chat_streams_and_remembers_what_was_said(browser: Browser) -> None:
    with site(ScriptedBackend("Two of them.", "Four of them.")) as here:
        page = browser.open(here.address)
        chat(page, "How many?")
        page.wait("document.querySelector('.reply')?.innerText.includes('Two of them.')")
        page.wait(IS_DONE)
        chat(page, "And now?")
        page.wait("document.querySelectorAll('.reply')[1]?.innerText.includes('Four of them.')")
        said = [(each["role"], each["content"]) for each in page.bodies[-1]["messages"]]
        assert said == [
            ("user", "How many?"),
            ("assistant", "Two of them."),
            ("user", "And now?"),
        ]
        assert page.complaints == []


def test_a_token_shows_its_experts_and_goes_on_from_an_alternative(browser: Browser) -> None:
    with site(ScriptedBackend("one two three four", " five")) as here:
        page = browser.open(here.address)
        page.click("[data-key=complete]")
        complete(page, "zero ")
        page.click(".token:nth-child(2)")
        page.wait("document.querySelectorAll('.panel .lane').length === 6")
        assert page.evaluate("document.querySelectorAll('.panel .strip i').length") == 24
        assert "4.00 experts" in page.text(".panel")
        taken = page.text(".alternatives .taken code")
        other = page.text(".alternatives li button code").replace("\u2423", " ")
        assert (taken, page.text(".token-name")) == ("\u2423two", "\u2423two")
        page.click(".alternatives li button")
        page.wait("document.querySelector('.sheet').innerText.includes('five')")
        assert last_request(here).prompt == "zero one" + other
        assert page.complaints == []


def test_a_token_opens_by_keyboard_and_escape_leads_back_to_it(browser: Browser) -> None:
    with site(ScriptedBackend("one two three four")) as here:
        page = browser.open(here.address)
        page.click("[data-key=complete]")
        complete(page)
        page.evaluate("document.querySelector('.token').focus()")
        page.press("ArrowRight")
        page.press("Enter")
        page.wait("document.querySelector('.panel').dataset.open === 'true'")
        assert page.text(".token-name") == "\u2423two"
        page.evaluate("document.querySelector('.panel button').focus()")
        page.press("Escape")
        page.wait("document.querySelector('.panel').dataset.open === 'false'")
        assert page.evaluate("document.activeElement.dataset.index") == "1"


def test_the_slider_sets_the_budget_of_the_next_request(browser: Browser) -> None:
    with site(ScriptedBackend("one two three four", cards=(BASE_CARD,))) as here:
        page = browser.open(here.address)
        page.wait("document.querySelector('#budget').checkVisibility()")
        complete(page)
        assert page.bodies[-1]["experts"] == "auto"
        page.evaluate(
            "(() => { const s = document.querySelector('#budget'); s.value = 2.5;"
            " s.dispatchEvent(new Event('input')); })()"
        )
        page.click(".actions button:nth-child(3)")
        page.wait("document.querySelector('.speed').innerText.includes('2.')")
        assert last_request(here).options.experts == 2.5
        assert page.bodies[-1]["experts"] == 2.5


def test_a_gap_is_filled_between_two_texts(browser: Browser) -> None:
    with site(ScriptedBackend("    total = sum(values)\n", cards=(BASE_CARD,))) as here:
        page = browser.open(here.address)
        page.click(".starters button:nth-child(4)")
        page.click(GO)
        page.wait(IS_DONE)
        request = last_request(here)
        assert (request.prompt, request.suffix) == (
            "def mean(values):\n",
            "    return total / len(values)\n",
        )
        assert page.text(".sheet").replace("\u21b5", "").splitlines() == [
            "def mean(values):",
            "    total = sum(values)",
            "    return total / len(values)",
        ]


def test_stop_aborts_the_request_and_keeps_the_text(browser: Browser) -> None:
    with site(ScriptedBackend(ENDLESS)) as here:
        page = browser.open(here.address)
        chat(page, "Go on")
        page.wait("document.querySelectorAll('.token').length > 5")
        page.press("Escape")
        wait_until(lambda: len(here.backend.aborted) == 1)
        page.wait("document.querySelector('.speed').innerText.includes('stopped')")
        assert page.text(".reply").startswith("on on on")


def test_a_broken_answer_is_kept_and_can_be_had_anew(browser: Browser) -> None:
    broken = Script(text="one two three", error=BackendError("the engine died"), error_after=2)
    with site(ScriptedBackend(broken, "four five six")) as here:
        page = browser.open(here.address)
        chat(page, "Count")
        page.wait("document.querySelector('.problem')?.innerText.includes('The engine died.')")
        assert page.text(".reply") == "one two"
        page.click(".problem button")
        page.wait("document.querySelector('.reply').innerText === 'four five six'")
        page.click("nav a:nth-child(3)")
        page.wait("document.querySelector('.errors')?.innerText.includes('Engine gone')")


def test_a_full_server_says_when_to_come_back(browser: Browser) -> None:
    with site(ScriptedBackend("Two", max_requests=0, retry_after_s=30)) as here:
        page = browser.open(here.address)
        chat(page, "How many?")
        page.wait("/in (30|29) s/.test(document.querySelector('.problem button')?.innerText)")
        assert page.evaluate("document.querySelector('.problem button').disabled")


def test_a_model_that_loads_shows_how_far_it_is_and_takes_nothing_yet(browser: Browser) -> None:
    with site(ScriptedBackend("Two", load_s=8)) as here:
        page = browser.open(here.address)
        page.wait("document.querySelector('#notice').innerText.includes('being loaded')")
        assert 0 < page.evaluate("document.querySelector('#notice progress').value") < 1
        page.write(FIELD, "How many?")
        assert page.evaluate("document.querySelector('.composer .primary').disabled")
        page.wait("document.querySelector('#notice').hidden")
        page.press("Enter")
        page.wait("document.querySelector('.reply')?.innerText === 'Two'")


def test_a_server_that_went_away_is_said_to_be(browser: Browser) -> None:
    with site(ScriptedBackend("Two")) as here:
        page = browser.open(here.address)
        page.wait("document.querySelector('#model-name').innerText === 'scripted'")
    page.wait("document.querySelector('#notice').innerText.includes('cannot be reached')")


def test_a_key_is_asked_for_and_kept_by_the_browser(browser: Browser) -> None:
    digest = hashlib.sha256(b"open sesame").hexdigest()
    config = ServerConfig(keys=KeysConfig(allowed={"ali": f"sha256:{digest}"}))
    with site(ScriptedBackend("Two"), config) as here:
        page = browser.open(here.address)
        page.wait("document.querySelector('#key-dialog').open")
        page.write("#key-value", "wrong")
        page.press("Enter")
        page.wait("document.querySelector('#key-fault').innerText.includes('does not know')")
        page.write("#key-value", "open sesame")
        page.press("Enter")
        page.wait("document.querySelector('#notice').hidden")
        page.go(here.address)
        chat(page, "How many?")
        page.wait("document.querySelector('.reply')?.innerText === 'Two'")


def test_markup_in_an_answer_stays_text(browser: Browser) -> None:
    markup = "<img src=x onerror=\"document.title='broken in'\"><script>1</script>"
    with site(ScriptedBackend(markup)) as here:
        page = browser.open(here.address)
        chat(page, markup)
        page.wait("document.querySelector('.reply')?.innerText.includes('</script>')")
        page.wait(IS_DONE)
        assert page.text(".reply") == page.text(".asked p") == markup
        assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0
        assert page.complaints == []


def test_the_numbers_of_an_answer_reach_the_other_pages(browser: Browser) -> None:
    with site(ScriptedBackend("one two three four")) as here:
        page = browser.open(f"{here.address}experts")
        page.wait("document.querySelector('.empty strong')?.innerText === 'No tokens yet'")
        page.click("nav a:nth-child(1)")
        chat(page, "Count")
        page.wait(IS_DONE)
        page.click("nav a:nth-child(2)")
        page.wait("document.querySelector('main').innerText.includes('the last 4 tokens')")
        assert page.evaluate("document.querySelectorAll('.column')[3].innerText").startswith(
            "100 %"
        )
        page.click("nav a:nth-child(3)")
        page.wait("document.querySelector('main').innerText.includes('tokens/s; 4 in all')")
        page.wait("document.querySelector('main').innerText.includes('median of 1')")
        # Back on the first page, the conversation is still there.
        page.click("nav a:nth-child(1)")
        assert page.text(".reply") == "one two three four"
        assert page.complaints == []


def test_light_and_dark_follow_the_system_until_one_is_chosen(browser: Browser) -> None:
    with site(ScriptedBackend("Two")) as here:
        page = browser.open(here.address, scheme="dark")
        color = "getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(color)
        page.set_scheme("light")
        light = page.wait(f"{color} !== '{dark}' && {color}")
        page.click("#theme")
        page.click("#theme")
        assert page.wait(f"{color} === '{dark}'")
        page.go(here.address)
        assert page.evaluate(color) == dark != light


def test_no_page_is_wider_than_a_phone(browser: Browser) -> None:
    broken = Script(text="a " * 40 + "x" * 300, error=BackendError("it died"), error_after=60)
    with site(ScriptedBackend(broken)) as here:
        for path in PAGES:
            page = browser.open(here.address.rstrip("/") + path, width=360, height=740)
            page.wait("document.querySelector('#model-name').innerText === 'scripted'")
            page.evaluate("document.querySelector('nav a').click()")
            chat(page, "word" * 100)
            page.wait("document.querySelector('.problem')?.hidden === false")
            for place in (1, 2, 3):
                page.click(f"nav a:nth-child({place})")
                page.wait("document.querySelector('main').innerText.length > 20")
                assert page.evaluate("document.documentElement.scrollWidth") <= 360
