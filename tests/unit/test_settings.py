"""Settings: defaults, then TOML, then --set; whatever is wrong is named, with the way out."""

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moestro.errors import ConfigError
from moestro.settings import build, load, merge, override, secret, to_tables, to_toml, variable


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """A table within a table."""

    learning_rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        """Refuse what no optimizer can use."""
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate is {self.learning_rate}: it must be above 0")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One of several tables of a kind."""

    path: Path
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Run:
    """One field of every type that settings know."""

    name: str
    steps: int = 10
    is_fast: bool = False
    balance: Literal["sign", "none"] = "sign"
    choices: Literal[1, 2] = 1
    seed: int | None = None
    budget: float | Literal["auto"] = "auto"
    sizes: tuple[int, ...] = ()
    sources: tuple[Source, ...] = ()
    out: Path = Path("runs")
    optimizer: Optimizer = Optimizer(learning_rate=0.5)
    warmup: Optimizer | None = None
    mixture: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    total: int = field(init=False, default=0)


# Finite, because infinity is a setting but nan never is; text "none" stands for None.
finite = st.floats(allow_nan=False)
texts = st.text(max_size=8)
optimizers = st.builds(
    Optimizer,
    learning_rate=st.floats(min_value=0, exclude_min=True, allow_nan=False),
    betas=st.tuples(finite, finite),
    clip=st.none() | finite,
)
sources = st.builds(Source, path=st.just(Path("a/b")), weight=finite)
runs = st.builds(
    Run,
    name=texts,
    steps=st.integers(),
    is_fast=st.booleans(),
    balance=st.sampled_from(["sign", "none"]),
    choices=st.sampled_from([1, 2]),
    seed=st.none() | st.integers(),
    budget=finite | st.just("auto"),
    sizes=st.lists(st.integers(), max_size=3).map(tuple),
    sources=st.lists(sources, max_size=2).map(tuple),
    out=st.just(Path("x")),
    optimizer=optimizers,
    warmup=st.none() | optimizers,
    mixture=st.dictionaries(texts, finite, max_size=2),
    notes=st.dictionaries(texts, st.integers() | texts | st.lists(st.booleans()), max_size=2),
)


@given(run=runs)
def test_toml_reads_back_as_the_same_settings(run: Run) -> None:
    assert build(Run, tomllib.loads(to_toml(run))) == run


def test_a_file_is_read_as_tables(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('name = "caf\u00e9"\n[optimizer]\nclip = 2.0\n', encoding="utf-8")
    assert load(path) == {"name": "caf\u00e9", "optimizer": {"clip": 2.0}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such configuration file"),
        (b"name = ", "not valid TOML"),
        (b'name = "\xff"', "not valid TOML"),
        (b"steps = " + b"9" * 5000, "not valid TOML"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"run.toml: {reason}"):
        load(path)


def test_a_folder_or_a_path_through_a_file_is_not_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with pytest.raises(ConfigError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="Not a directory"):
        load(tmp_path / "plain" / "run.toml")


def test_merging_lays_one_over_the_other_and_changes_neither() -> None:
    base, top = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "e": {"f": 5}}
    assert merge(base, top) == {"a": {"b": 1, "c": 4}, "d": 3, "e": {"f": 5}}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge({"a": 1}, {"a": {"b": 2}}) == {"a": {"b": 2}}


@pytest.mark.parametrize(
    ("assignment", "tables"),
    [
        ("steps=100", {"steps": 100}),
        ("optimizer.clip=0.5", {"optimizer": {"clip": 0.5}}),
        (" a . b = true ", {"a": {"b": True}}),
        ("sizes=[1, 2]", {"sizes": [1, 2]}),
        ("name=my run", {"name": "my run"}),
        ('name="3"', {"name": "3"}),
        ("name=a=b", {"name": "a=b"}),
        ("name=", {"name": ""}),
        ("name=1\nsteps = 2", {"name": "1\nsteps = 2"}),
    ],
)
def test_an_assignment_is_toml_or_else_plain_text(assignment: str, tables: dict[str, Any]) -> None:
    assert override({}, [assignment]) == tables


def test_later_assignments_win_and_others_stay() -> None:
    tables = {"optimizer": {"clip": 1.0, "learning_rate": 0.3}}
    found = override(tables, ["optimizer.clip=2", "optimizer.clip=3"])
    assert found == {"optimizer": {"clip": 3, "learning_rate": 0.3}}


@pytest.mark.parametrize("assignment", ["steps", "=3", "", "a..b=1", ".a=1", "a.=1"])
def test_an_assignment_without_name_or_value_is_an_error(assignment: str) -> None:
    with pytest.raises(ConfigError, match="expected NAME=VALUE"):
        override({}, [assignment])


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"stepz": 1}, "stepz: unknown setting. hint: steps"),
        ({"qqq": 1}, "qqq: unknown setting. known: balance, budget"),
        ({"total": 1}, "total: unknown setting"),
        ({"leraning_rate": 1}, "leraning_rate: unknown setting. hint: optimizer.learning_rate"),
        ({"optimizer": {"leraning_rate": 1}}, "optimizer.leraning_rate: .* hint: learning_rate"),
        ({"optimizer": {"learning_rate": -1}}, "optimizer.learning_rate is -1.0: it must be"),
        ({"optimizer": 3}, "optimizer: 3 is not a table"),
        ({"steps": "ten"}, "steps: 'ten' is str, expected int"),
        ({"steps": 1.5}, "steps: 1.5 is float, expected int"),
        ({"steps": True}, "steps: True is bool, expected int"),
        ({"is_fast": 1}, "is_fast: 1 is int, expected bool"),
        ({"name": 3}, "name: 3 is int, expected str: for text, write name='\"3\"'"),
        ({"balance": "sing"}, "balance: 'sing' is not one of sign, none"),
        ({"choices": True}, "choices: True is not one of 1, 2"),
        ({"choices": 1.0}, "choices: 1.0 is not one of 1, 2"),
        ({"seed": "x"}, "seed: 'x' is str, expected int"),
        ({"budget": "much"}, "'much' is str, expected float; or budget: 'much' is not one of auto"),
        ({"budget": float("nan")}, "budget: nan is not a number"),
        ({"optimizer": {"learning_rate": 10**400}}, "optimizer.learning_rate: 1000.* is int"),
        ({"sizes": 3}, "sizes: 3 is not a list"),
        ({"sizes": [1, "x"]}, r"sizes\[1\]: 'x' is str, expected int"),
        ({"sources": [{"weight": 1}]}, r"sources\[0\].path: missing"),
        ({"optimizer": {"betas": [0.9]}}, r"optimizer.betas: \[0.9\] has 1 items, expected 2"),
        ({"mixture": 3}, "mixture: 3 is not a table"),
        ({"mixture": {"prose": "x"}}, "mixture.prose: 'x' is str, expected float"),
        ({"out": 3}, "out: 3 is int, expected Path"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_the_way_out(
    tables: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Run, {"name": "x"} | tables)


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="name: missing: add it"):
        build(Run, {})


def test_a_partial_table_keeps_the_rest_of_its_fields_default() -> None:
    run = build(Run, {"name": "x", "optimizer": {"clip": 2}})
    assert run.optimizer == Optimizer(learning_rate=0.5, clip=2.0)


def test_a_table_without_a_default_takes_its_own_defaults() -> None:
    assert build(Run, {"name": "x", "warmup": {}}).warmup == Optimizer()


def test_the_word_none_removes_an_optional_value() -> None:
    tables = override({"name": "x", "seed": 3}, ["seed=none", "optimizer.clip=none"])
    run = build(Run, tables)
    assert run.seed is None
    assert run.optimizer.clip is None


def test_the_word_none_is_a_choice_where_it_is_listed() -> None:
    assert build(Run, {"name": "x", "balance": "none"}).balance == "none"


def test_one_text_serves_where_a_list_of_texts_is_asked_for() -> None:
    @dataclass(frozen=True)
    class Data:
        """A list of texts."""

        paths: tuple[str, ...]

    assert build(Data, {"paths": "src"}) == Data(paths=("src",))


def test_a_whole_number_serves_where_a_fraction_is_asked_for() -> None:
    rate = build(Optimizer, {"learning_rate": 1}).learning_rate
    assert isinstance(rate, float)


def test_what_is_not_a_setting_is_not_written() -> None:
    assert "total" in {each.name for each in fields(Run)}
    assert "total" not in to_tables(Run(name="x"))


def test_none_in_a_free_table_is_left_out() -> None:
    assert to_tables(Run(name="x", notes={"a": None, "b": (1, Path("c"))}))["notes"] == {
        "b": [1, "c"]
    }


def test_a_variable_that_is_empty_or_missing_has_its_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MOESTRO_TEST_KIND", "quick")
    assert variable("MOESTRO_TEST_KIND", "auto") == "quick"
    monkeypatch.setenv("MOESTRO_TEST_KIND", "")
    assert variable("MOESTRO_TEST_KIND", "auto") == "auto"
    assert variable("MOESTRO_TEST_MISSING", "auto") == "auto"


def test_a_secret_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESTRO_TEST_KEY", "s3cret")
    assert secret("MOESTRO_TEST_KEY") == "s3cret"


@pytest.mark.parametrize("value", [None, ""])
def test_a_secret_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("MOESTRO_TEST_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MOESTRO_TEST_KEY", value)
    with pytest.raises(ConfigError, match=r"MOESTRO_TEST_KEY is not set: set it"):
        secret("MOESTRO_TEST_KEY")
