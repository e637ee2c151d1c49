"""`moestro keys`: a key is shown once, its terms can be changed, and it ends for good."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from moestro.cli.main import main


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(f'[records]\nurl = "sqlite:///{tmp_path}/records.db"\n')
    return path


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `moestro keys` and return its status, output and complaint."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moestro", "keys", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


def test_a_key_is_shown_once_and_never_again(keys: Any, config: Path, tmp_path: Path) -> None:
    status, out, err = keys("add", config, "alice")
    assert status == 0
    key = out.strip()
    assert key.startswith("mo-")
    assert "not shown again" in err
    # What the first key changes for everybody, nobody should find out by a 401.
    assert "asks everybody for a key" in err
    assert "--set is_admin=true" in err
    assert "asks everybody" not in keys("add", config, "bob")[2]
    assert key not in keys("list", config)[1]
    assert all(key.encode() not in file.read_bytes() for file in tmp_path.iterdir())


def test_a_life_of_a_key_in_json(keys: Any, config: Path) -> None:
    limits = ["budget_usd=5", 'allowed_models=["small"]', "requests_per_minute=60"]
    options = [word for limit in limits for word in ("--set", limit)]
    made = json.loads(keys("add", config, "alice", "--days", 2, "--json", *options)[1])
    assert made["key"].startswith("mo-")
    (shown,) = json.loads(keys("list", config, "--json")[1])["keys"]
    assert (shown["budget_usd"], shown["allowed_models"]) == (5.0, ["small"])
    assert (shown["spent_usd"], shown["is_usable"]) == (0.0, True)
    assert shown["expires_at"] == pytest.approx(shown["created_at"] + 2 * 86_400, abs=60)
    changed = keys("set", config, "alice", "--set", "budget_usd=none", "--json")[1]
    assert json.loads(changed)["budget_usd"] is None
    assert json.loads(changed)["requests_per_minute"] == 60
    assert json.loads(keys("revoke", config, "alice", "--json")[1])["revoked"] is True
    (ended,) = json.loads(keys("list", config, "--json")[1])["keys"]
    assert not ended["is_usable"]


def test_a_keys_end_can_be_put_off_and_taken_away(keys: Any, config: Path) -> None:
    keys("add", config, "alice", "--days", 0, "--set", "budget_usd=5")
    shown = json.loads(keys("set", config, "alice", "--days", 2, "--json")[1])
    assert shown["expires_at"] == pytest.approx(time.time() + 2 * 86_400, abs=60)
    assert shown["budget_usd"] == 5
    assert json.loads(keys("list", config, "--json")[1])["keys"][0]["is_usable"]
    shown = json.loads(keys("set", config, "alice", "--set", "expires_at=none", "--json")[1])
    assert shown["expires_at"] is None


def test_a_table_says_how_each_key_stands(
    keys: Any, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    keys("add", config, "alice", "--set", "budget_usd=5", "--set", "budget_tokens=1000")
    keys("add", config, "bob", "--days", 0, "--set", 'allowed_models=["small"]')
    keys("add", config, "carol")
    assert keys("set", config, "carol")[0] == 0
    assert keys("revoke", config, "carol")[0] == 0
    lines = [line.split() for line in keys("list", config)[1].splitlines()]
    states = {line[0]: line[1] for line in lines}
    assert states == {"name": "state", "alice": "usable", "bob": "expired", "carol": "revoked"}
    assert lines[1][-7:] == ["$5", "and", "1,000", "tokens", "/", "month", "all"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["revoke", "{config}", "bob"], "there is no key named bob"),
        (["set", "{config}", "bob"], "there is no key named bob"),
        (["add", "{config}", "bob", "--set", "budget_eur=5"], "budget_eur: unknown setting"),
        (["add", "{config}", "bob", "--set", "budget_usd=-1"], "budget_usd is -1"),
        (["list", "{config}.none"], "no such configuration file"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    keys: Any, config: Path, arguments: list[str], complaint: str
) -> None:
    status, _, err = keys(*(word.format(config=config) for word in arguments))
    assert status == 2
    assert complaint in err
    assert len(err.splitlines()) == 1


def test_a_name_twice_is_a_mistake(keys: Any, config: Path) -> None:
    assert keys("add", config, "alice")[0] == 0
    status, _, err = keys("add", config, "alice")
    assert status == 2
    assert "exists" in err


def test_a_model_that_the_fleet_lacks_is_not_allowed_in_silence(keys: Any, config: Path) -> None:
    config.write_text(f'{config.read_text()}[[models]]\nname = "small"\n')
    assert keys("add", config, "alice", "--set", 'allowed_models=["auto", "small"]')[0] == 0
    for command, name in (("add", "bob"), ("set", "alice")):
        status, _, err = keys(command, config, name, "--set", 'allowed_models=["nosuch"]')
        assert status == 2
        assert "allowed_models has nosuch, which the fleet lacks: choose small, auto" in err


def test_a_file_whose_server_asks_for_no_such_keys_gets_none(keys: Any, tmp_path: Path) -> None:
    # They looked made, and the server stayed open to everybody.
    path = tmp_path / "serve.toml"
    path.write_text('model = "runs/demo"\n')
    status, out, err = keys("add", path, "alice")
    assert (status, out) == (2, "")
    assert "server.keys.allowed" in err
    path.write_text('preset = "demo"\n')
    status, out, err = keys("add", path, "alice")
    assert (status, out) == (2, "")
    assert "neither [[models]] nor [records]" in err
    assert list(tmp_path.iterdir()) == [path]


def test_the_list_shows_who_is_an_admin_how_fast_and_how_long(keys: Any, config: Path) -> None:
    keys("add", config, "boss", "--set", "is_admin=true")
    keys("add", config, "bob", "--days", 2, "--set", "requests_per_minute=3")
    rows = keys("list", config)[1].splitlines()
    assert "usable, admin" in next(row for row in rows if "boss" in row)
    bob = next(row for row in rows if "bob" in row)
    assert "usable to 20" in bob
    assert "3 requests/min" in bob


def test_the_help_names_the_tables_that_keys_need(keys: Any) -> None:
    # Brackets are markup to what prints it, and vanished.
    status, out, _ = keys("add", "--help")
    assert status == 0
    assert "[records]" in out
    assert "[[models]]" in out


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["--days", "1e12"], "it must be 0 to 253402300799"),
        (["--set", f"budget_tokens={10**20}"], "budget_tokens is 1" + 20 * "0" + ": it must be 0"),
        (["--set", f"requests_per_minute={2**31}"], "it must be 1 to 2147483647"),
    ],
)
def test_terms_that_no_calendar_or_database_holds_are_refused_and_the_list_is_shown(
    keys: Any, config: Path, given: list[str], complaint: str
) -> None:
    status, _, said = keys("add", config, "alice", *given)
    assert status == 2
    assert complaint in said
    assert keys("list", config)[0] == 0


def test_a_word_that_is_no_choice_is_told_in_words_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["moestro", "convert", "model", "new", "--to", "onnx"])
    with pytest.raises(SystemExit, match="2"):
        main()
    said = capsys.readouterr().err
    assert said.startswith("moestro: Invalid value for '--to': 'onnx' is not one of 'hf', 'gguf'.")
