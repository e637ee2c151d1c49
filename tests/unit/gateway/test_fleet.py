"""A fleet's file: what is wrong with it is said in one line, and no key is ever shown."""

from pathlib import Path
from typing import Any

import pytest

from moestro import settings
from moestro.backends.scripted import DEFAULT_CARD
from moestro.errors import ConfigError
from moestro.gateway.config import GatewayConfig
from moestro.gateway.fleet import Fleet, LocalServer, Price

URL = "http://10.0.0.5:8000/v1"
ONE = {"name": "m", "backends": [{"url": URL}]}


def build(*models: dict[str, Any], **tables: Any) -> Fleet:
    return settings.build(Fleet, {"models": list(models), **tables})


def test_a_fleet_is_read_with_its_defaults() -> None:
    fleet = build(
        ONE | {"price": {"input_usd_per_mtok": 1}, "backends": [{"url": URL, "model": "big"}]},
        {"name": "local", "path": "runs/demo"},
        policy={"path": "p", "models": ["m"], "audit": {"share": 0.02}},
        gateway={"retries": 1, "timeouts": {"connect_s": 1}},
    )
    assert fleet.names == ("m", "local")
    assert fleet.models[0].price.cost_usd(2_000_000, 5) == 2
    assert fleet.gateway.timeouts.connect_s == 1
    assert fleet.backends_of(fleet.models[1]) == ()
    running = fleet.with_local(
        {"local": LocalServer(url="http://127.0.0.1:4711/v1", card=DEFAULT_CARD)}, "LOCAL_KEY"
    )
    assert running.backends_of(running.models[1])[0].address == "http://127.0.0.1:4711"


@pytest.mark.parametrize(
    ("models", "tables", "message"),
    [
        ([], {}, "models: none given"),
        ([ONE, ONE], {}, "two have the name m"),
        ([ONE | {"name": "auto"}], {}, "other than auto"),
        ([ONE | {"path": "x"}], {}, "needs a path or backends"),
        ([{"name": "m"}], {}, "needs a path or backends"),
        ([ONE | {"price": {"input_usd_per_mtok": -1}}], {}, "a price is 0 or more"),
        ([ONE | {"context_length": -1}], {}, "context_length is -1"),
        ([ONE | {"colour": 1}], {}, "colour: unknown setting"),
        ([ONE], {"policy": {"path": "p", "models": ["x"]}}, "names the model x, which the fleet"),
        ([ONE], {"policy": {"path": "p", "audit": {"judge": "x"}}}, "names the model x"),
        ([ONE], {"policy": {"path": "p", "names": {"a": "x"}}}, "names the model x"),
        ([ONE], {"policy": {"path": "p", "audit": {"share": 2}}}, "share is 2"),
        ([ONE], {"gateway": {"retries": 99}}, "retries is 99"),
        ([ONE], {"gateway": {"hedge_after_s": 0}}, "hedge_after_s is 0"),
        ([ONE], {"gateway": {"sticky_s": -1}}, "sticky_s is -1"),
        ([ONE], {"gateway": {"probe": {"every_s": -1}}}, "every_s is -1"),
        ([ONE], {"gateway": {"queue": {"max_waiting": -1}}}, "max_waiting is -1"),
    ],
)
def test_what_is_wrong_is_one_clear_line(
    models: list[dict[str, Any]], tables: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        build(*models, **tables)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ({"url": "ftp://x/v1"}, "url is 'ftp://x/v1'"),
        ({"url": "http://"}, "url is"),
        ({"url": "http://x:99999/v1"}, "url is"),
        ({"url": "http://[x/v1"}, "url is"),
        ({"url": "http://x/v1?a=b"}, "url is"),
        ({"url": "http://me:secret@x/v1"}, "has a user or a password"),
        ({"url": URL, "key": "sk-secret"}, "not the name of a variable"),
        ({"url": URL, "weight": 0}, "weight is 0"),
        ({"url": URL, "max_concurrent": 0}, "max_concurrent is 0"),
        ({"url": URL, "dialect": "other"}, "dialect"),
    ],
)
def test_a_backend_is_checked_and_no_secret_shown(backend: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        build(ONE | {"backends": [backend]})
    assert "secret" not in str(raised.value)


def test_a_key_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = build(ONE | {"backends": [{"url": URL, "key": "env:NO_SUCH_KEY"}]})
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"models.m.backends\[0\].*NO_SUCH_KEY"):
        fleet.check_keys()
    monkeypatch.setenv("NO_SUCH_KEY", "x")
    fleet.check_keys()
    build(ONE).check_keys()


def test_a_policy_for_other_models_is_told_apart() -> None:
    fleet = build(ONE, policy={"path": "p", "names": {"theirs": "m"}})
    fleet.check_policy_models(["theirs", "m"])
    with pytest.raises(ConfigError, match="of which other is not in the fleet"):
        fleet.check_policy_models(["other"])
    with pytest.raises(ConfigError, match="of which other is not in the fleet"):
        build(ONE).check_policy_models(["other"])


def test_no_tokens_cost_more_than_at_the_dearest_price() -> None:
    reads_cheaply = Price(input_usd_per_mtok=1, output_usd_per_mtok=9)
    writes_cheaply = Price(input_usd_per_mtok=6, output_usd_per_mtok=2)
    dearest = Price.dearest([reads_cheaply, writes_cheaply])
    assert dearest == Price(input_usd_per_mtok=6, output_usd_per_mtok=9)


def test_settings_are_written_as_they_are_read() -> None:
    config = GatewayConfig(hedge_after_s=1)
    assert settings.build(GatewayConfig, settings.to_tables(config)) == config
    assert Path("p") == build(ONE, policy={"path": "p"}).policy.path  # type: ignore[union-attr]
