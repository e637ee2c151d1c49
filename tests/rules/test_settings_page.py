"""docs/settings.md: it has every setting, with its default, and limits that are in force.

Knows how the page is written, not what any setting means. Next: test_api_page.py.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moestro.api.key_terms import KeyTerms
from moestro.cli.fleet import FleetConfig
from moestro.cli.wiring import ServeConfig
from moestro.errors import ConfigError
from moestro.gateway.fleet import BackendConfig, FleetModel, PolicyConfig
from moestro.policy.learn import LearnConfig
from moestro.train.config import build_run_config
from tests.rules import settings_page
from tests.rules.settings_page import Setting, list_settings
from tests.rules.tree import ROOT

BACKEND = BackendConfig(url="http://127.0.0.1:1/v1")
CONFIGS = (
    # Other limits of positions are YaRN's.
    build_run_config({"data": {"paths": ["text"]}, "model": {"rope": {"kind": "yarn"}}}),
    ServeConfig(model=Path("model")),
    FleetConfig(
        models=(FleetModel(name="far", backends=(BACKEND,)),),
        policy=PolicyConfig(path=Path("policy")),
    ),
    KeyTerms(name="alice"),
    LearnConfig(),
)
NUMBER = r"-?\d+(?:\.\d+)?"
# How a limit is written, where its other side lies, and whether it may be taken itself.
BOUNDS = (
    (rf"({NUMBER}) or more", -math.inf, True),
    (rf"above ({NUMBER})", math.inf, False),
    (rf"at most ({NUMBER})", math.inf, True),
    (rf"below ({NUMBER})", -math.inf, False),
    (rf"({NUMBER}) to {NUMBER}", -math.inf, True),
    (rf"{NUMBER} to ({NUMBER})", math.inf, True),
)


def test_the_page_is_what_the_code_says() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page == settings_page.render(), "the settings changed: run `make docs`"


def test_every_setting_says_what_it_does() -> None:
    assert not [
        f"{type(config).__name__}.{each.name}: write a sentence below the field"
        for config, each in settings_of(CONFIGS)
        if not each.meaning
    ]


def test_a_setting_that_is_added_changes_the_page() -> None:
    @dataclasses.dataclass(frozen=True)
    class Config:
        """Some table."""

        wait_s: float = 2.0
        """Seconds to wait. Limits: above 0."""
        names: tuple[str, ...] | None = None

    waiting, names = list_settings(Config)
    assert waiting.to_row() == "| `wait_s` | number | `2.0` | Seconds to wait. | above 0 |"
    assert names.to_row() == "| `names` | list of text or none | none |  |  |"


def test_a_value_beyond_a_stated_limit_is_refused() -> None:
    accepted = [
        f"{type(config).__name__}.{each.name} is {value}, but: {each.limits}"
        for config, each in settings_of(CONFIGS)
        for value, is_within in values_at(each)
        if not is_within and refusal(config, each.name, value) is None
    ]
    assert not accepted


def test_a_value_at_a_stated_limit_is_taken() -> None:
    refused = [
        f"{type(config).__name__}.{each.name} is {value}, within: {each.limits}"
        for config, each in settings_of(CONFIGS)
        for value, is_within in values_at(each)
        # Another setting may stand against it.
        if is_within and (refusal(config, each.name, value) or "").startswith(f"{each.name} is")
    ]
    assert not refused


def test_a_number_without_a_stated_limit_may_be_any() -> None:
    refused = [
        f"{type(config).__name__}.{each.name}: {refusal(config, each.name, -1)}"
        for config, each in settings_of(CONFIGS)
        if each.kind.startswith(("number", "whole number")) and not each.limits
        if refusal(config, each.name, -1) is not None
    ]
    assert not refused


@pytest.mark.parametrize(
    ("limits", "values"),
    [
        ("1 or more", [(1, True), (0, False)]),
        ("above 0, at most 60", [(0, False), (1, True), (60, True), (61, False)]),
        ("0 to 10", [(0, True), (-1, False), (10, True), (11, False)]),
        ("0 or more, below 1", [(0, True), (-1, False), (1, False), (0, True)]),
        ("`low` or more", []),
    ],
)
def test_limits_are_read_as_people_read_them(limits: str, values: list[tuple[float, bool]]) -> None:
    assert list(values_at(Setting("name", "whole number", "", "", limits))) == values


def settings_of(configs: Any) -> Iterator[tuple[Any, Setting]]:
    """Yield every setting with the dataclass that holds it, tables within included."""
    for config in configs:
        for each in list_settings(type(config)):
            yield config, each
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            within = value if isinstance(value, tuple) else (value,)
            yield from settings_of(each for each in within if dataclasses.is_dataclass(each))


def values_at(setting: Setting) -> Iterator[tuple[float, bool]]:
    """Yield the values next to each limit, and whether they are within it."""
    if not setting.kind.startswith(("number", "whole number")):
        return
    is_whole = setting.kind.startswith("whole number")
    for part in setting.limits.split(", "):
        for pattern, towards, is_within in BOUNDS:
            match = re.fullmatch(pattern, part)
            if match is not None:
                bound = int(match[1]) if is_whole else float(match[1])
                yield bound, is_within
                yield next_to(bound, towards), not is_within


def next_to(value: float, towards: float) -> float:
    if isinstance(value, int):
        return value + (1 if towards > 0 else -1)
    return math.nextafter(value, towards)


def refusal(config: Any, name: str, value: float) -> str | None:
    try:
        dataclasses.replace(config, **{name: value})
    except ConfigError as error:
        return str(error)
    return None
