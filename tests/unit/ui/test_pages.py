"""The pages as a server sends them: strict, whole, cacheable; and the feeds behind them.

Next: ../../flow/test_pages.py, where a browser uses them.
"""

import asyncio
import re
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import moestro.ui
from moestro.backends.scripted import ScriptedBackend
from moestro.errors import UnknownModelError
from moestro.server.app import build_app
from moestro.ui.pages import OPEN_PATHS, PAGES, mount
from moestro.ui.recent import Recent

FOLDER = Path(moestro.ui.__path__[0])
SCRIPTS = sorted(FOLDER.glob("*.js"))


@cache
def build(root_path: str) -> FastAPI:
    backend = ScriptedBackend("Two")
    app = build_app(backend, open_paths=OPEN_PATHS)
    app.root_path = root_path
    mount(app, backend, Recent())
    return app


def get(path: str, root_path: str = "", **headers: str) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(build(root_path))
        async with httpx.AsyncClient(transport=transport, base_url="http://pages") as client:
            return await client.get(
                path, headers={k.replace("_", "-"): headers[k] for k in headers}
            )

    return asyncio.run(run())


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_the_document_under_a_strict_policy(path: str) -> None:
    answer = get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "require-trusted-types-for 'script'"} <= {
        *policy
    }
    assert "unsafe" not in answer.headers["content-security-policy"]


def test_whatever_the_document_and_the_scripts_name_is_served() -> None:
    named = re.findall(r'(?:src|href)="(ui/assets/[^"]+)"', get("/").text)
    for script in SCRIPTS:
        named += [
            f"ui/assets/{name}" for name in re.findall(r'from "\./([^"]+)"', script.read_text())
        ]
    assert {f"ui/assets/{path.name}" for path in SCRIPTS} == {n for n in named if n.endswith(".js")}
    for name in sorted(set(named)):
        answer = get(f"/{name}")
        assert answer.status_code == 200, name
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_nothing_else_is_served_from_the_folder() -> None:
    for name in ("pages.py", "..%2Fpages.py", "index.html", "missing.js"):
        assert get(f"/ui/assets/{name}").status_code == 404


def test_no_file_names_another_origin() -> None:
    files = [path for path in FOLDER.iterdir() if path.suffix in (".html", ".js", ".css")]
    named = {url for path in files for url in re.findall(r"https?://[\w./]+", path.read_text())}
    # Names of a language, which no browser ever fetches.
    assert named == {"http://www.w3.org/2000/svg"}


def test_no_script_turns_text_into_markup() -> None:
    risky = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(")
    assert not [path.name for path in SCRIPTS if risky.search(path.read_text())]


def test_an_unchanged_file_is_not_sent_again() -> None:
    first = get("/ui/assets/main.js")
    again = get("/ui/assets/main.js", if_none_match=first.headers["etag"])
    assert (again.status_code, again.content) == (304, b"")


def test_addresses_begin_where_a_proxy_has_put_the_server() -> None:
    assert '<base href="/">' in get("/").text
    assert '<base href="/moe&quot;/">' in get("/", root_path='/moe"').text


def test_the_state_tells_models_levels_and_errors() -> None:
    state: dict[str, Any] = get("/ui/state").json()
    (model,) = state["models"]
    assert model["card"]["id"] == model["stats"]["model"] == "scripted"
    assert model["first_token"] == {"count": 0, "median_s": None, "p95_s": None}
    assert "experts" not in model["stats"]
    assert (state["recent"]["samples"], state["recent"]["errors"]) == ([], [])


def test_the_experts_of_a_model_have_its_shape() -> None:
    experts = get("/ui/experts?model=scripted").json()
    assert (len(experts["window_LE"]), len(experts["window_LE"][0])) == (6, 16)
    assert len(experts["violation_L"]) == len(experts["histogram"]) == 6


def test_the_experts_of_an_unknown_model_are_a_404() -> None:
    answer = get("/ui/experts?model=nobody")
    assert answer.status_code == 404
    assert "'nobody' is not served here" in answer.json()["error"]["message"]
    assert UnknownModelError.__name__ not in answer.text
