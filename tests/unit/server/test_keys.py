"""API keys: the right ones get in under their name, others get a 401 in their dialect."""

import asyncio
import hashlib
import hmac
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from moestro import settings
from moestro.errors import ConfigError
from moestro.server.keys import KeyGuard, Keys, KeysConfig
from tests.unit.server.asgi import ask, run_raw, say_key

ALICE = "alice's long and random key"
BOB = "bob's long and random key"


def hash_of(key: str) -> str:
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def keys() -> Keys:
    return Keys(KeysConfig(allowed={"alice": hash_of(ALICE), "bob": hash_of(BOB)}))


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({"authorization": f"Bearer {ALICE}"}, "alice"),
        ({"authorization": f"bearer  {BOB} "}, "bob"),
        ({"x-api-key": ALICE}, "alice"),
        ({"x-api-key": BOB, "authorization": "Bearer unused"}, "bob"),
    ],
)
def test_a_known_key_gets_in_by_name(headers: dict[str, str], name: str) -> None:
    answer = ask(KeyGuard(say_key, keys()), "POST", "/v1/chat/completions", headers=headers)
    assert (answer.status_code, answer.text) == (200, name)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer"},
        {"authorization": f"Basic {ALICE}"},
        {"authorization": f"Bearer {hash_of(ALICE)}"},
        {"x-api-key": ""},
        {"x-api-key": ALICE[:-1]},
    ],
)
def test_all_else_is_refused_as_openai_does(headers: dict[str, str]) -> None:
    answer = ask(KeyGuard(say_key, keys()), "POST", "/v1/chat/completions", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert error["code"] == "invalid_api_key"
    assert "x-api-key" in error["message"]


def test_a_key_that_has_expired_is_refused_as_one() -> None:
    class Ring(Keys):
        def has_expired(self, presented: Sequence[bytes]) -> bool:
            return b"late" in presented

    guard = KeyGuard(say_key, Ring(KeysConfig(allowed={"bob": hash_of(BOB)})))
    late, wrong = (ask(guard, "GET", "/v1/models", headers={"x-api-key": k}) for k in ("late", "x"))
    assert late.status_code == wrong.status_code == 401
    assert late.json()["error"]["code"] == "invalid_api_key"
    assert "has expired" in late.json()["error"]["message"]
    assert "not known here" in wrong.json()["error"]["message"]
    assert not keys().has_expired([ALICE.encode()])


def test_anthropics_path_gets_anthropics_words() -> None:
    answer = ask(KeyGuard(say_key, keys()), "POST", "/v1/messages", headers={"x-api-key": "no"})
    assert answer.status_code == 401
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "authentication_error"


def test_a_refusal_repeats_no_key() -> None:
    answer = ask(KeyGuard(say_key, keys()), "GET", "/v1/models", headers={"x-api-key": "wrong-one"})
    assert "wrong-one" not in answer.text


@pytest.mark.parametrize(
    ("path", "status"),
    [("/health", 200), ("/pages/x.js", 200), ("/", 200), ("/healthy", 401), ("/pages", 401)],
)
def test_open_paths_need_no_key(path: str, status: int) -> None:
    guard = KeyGuard(say_key, keys(), open_paths=("/", "/health", "/pages/*"))
    assert ask(guard, "GET", path).status_code == status


def test_a_key_is_known_by_name_on_open_paths_too() -> None:
    guard = KeyGuard(say_key, keys(), open_paths=("/health",))
    assert ask(guard, "GET", "/health", headers={"x-api-key": BOB}).text == "bob"


def test_without_keys_everybody_gets_in() -> None:
    answer = ask(KeyGuard(say_key, Keys(KeysConfig())), "GET", "/v1/models")
    assert answer.text == "nobody"


def test_a_web_socket_needs_a_key_too() -> None:
    scope = {"type": "websocket", "path": "/feed"}
    sent = asyncio.run(run_raw(KeyGuard(say_key, keys()), scope))
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(first: bytes, second: bytes) -> bool:
        compared.append(second)
        return hmac.compare_digest(first, second)

    found = keys()
    monkeypatch.setattr("moestro.server.keys.hmac", SimpleNamespace(compare_digest=compare))
    assert found.find_name([ALICE.encode()]) == "alice"
    assert len(compared) == 2


def test_a_key_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESTRO_TEST_KEY", ALICE)
    from_environment = Keys(KeysConfig(allowed={"ci": "env:MOESTRO_TEST_KEY"}))
    assert from_environment.find_name([ALICE.encode()]) == "ci"


@pytest.mark.parametrize("text", ["sha256:123", "env:", "", f"md5:{'0' * 64}"])
def test_what_is_neither_hash_nor_variable_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"keys\.allowed\.alice is neither"):
        Keys(KeysConfig(allowed={"alice": text}))


def test_a_key_in_clear_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="is neither") as caught:
        Keys(KeysConfig(allowed={"alice": ALICE}))
    assert ALICE not in str(caught.value)


def test_one_key_has_one_name() -> None:
    with pytest.raises(ConfigError, match="bob is the same key as alice"):
        Keys(KeysConfig(allowed={"alice": hash_of(ALICE), "bob": hash_of(ALICE)}))


def test_keys_stand_in_a_configuration() -> None:
    tables = {"allowed": {"alice": hash_of(ALICE)}}
    assert settings.build(KeysConfig, tables) == KeysConfig(allowed={"alice": hash_of(ALICE)})
