"""`moestro keys`: who may use a gateway, and how much; in the database of its configuration.

Next: records/keys.py.
"""

import time
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from moestro import settings
from moestro.api.cards import AUTO
from moestro.api.key_terms import KeyTerms
from moestro.cli import options
from moestro.errors import ConfigError

if TYPE_CHECKING:
    from moestro.api.record_view import KeyView
    from moestro.records.database import Database

app = typer.Typer(no_args_is_help=True, help="Who may use a gateway, and how much.")

_DAY_S = 86_400.0

Config = Annotated[
    Path,
    typer.Argument(
        help=r"The gateway's TOML file, with \[\[models]] and \[records].", show_default=False
    ),
]
Name = Annotated[str, typer.Argument(help="Whose key it is.", show_default=False)]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="What it allows, like budget_usd=5 or allowed_models='[\"small\"]'.",
        show_default=False,
    ),
]
Days = Annotated[
    float | None,
    typer.Option("--days", min=0.0, help="Days until it expires; never if left out."),
]


@app.command("add")
def add(
    config: Config,
    name: Name,
    assignments: Assignments = None,
    days: Days = None,
    as_json: options.Json = False,
) -> None:
    """Make a key and show it, this once: only its hash is kept.

    Example: [bold]moestro keys add fleet.toml alice --set budget_usd=20[/bold]
    """
    from moestro.records import keys

    terms = _build_terms(name, assignments or [], days)
    _check_models(config, terms)
    with closing(_open(config)) as database, database.write() as connection:
        is_first = not keys.list_keys(connection)
        key = keys.add_key(connection, terms)
    if as_json:
        options.print_json({"name": name, "key": key, **asdict(terms)})
        return
    print(key)
    options.say(f"the key of {name}: keep it now, it is not shown again")
    if is_first:
        options.say(_what_the_first_changes(config, terms))


@app.command("list")
def list_all(config: Config, as_json: options.Json = False) -> None:
    """Show all keys: what they allow, what they spent, whether they open anything.

    Example: [bold]moestro keys list fleet.toml[/bold]
    """
    from moestro.records.view import view_keys

    with closing(_open(config)) as database:
        views = view_keys(database)
    if as_json:
        options.print_json({"keys": [_to_dict(view) for view in views]})
        return
    table = Table("name", "state", "spent", "tokens", "budget", "rates", "models", box=None)
    for view in views:
        table.add_row(*_to_cells(view))
    Console().print(table)


@app.command("set")
def change(
    config: Config,
    name: Name,
    assignments: Assignments = None,
    days: Annotated[
        float | None,
        typer.Option("--days", min=0.0, help="Days from now until it expires.", show_default=False),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Change what a key allows; what is not named stays as it is, and none lifts a limit.

    Without an end again: --set expires_at=none.

    Example: [bold]moestro keys set fleet.toml alice --days 30[/bold]
    """
    from moestro.records import keys

    with closing(_open(config)) as database, database.write() as connection:
        tables = settings.to_tables(keys.find_terms(connection, name))
        tables = settings.override(tables, assignments or []) | _end_after(days)
        terms = settings.build(KeyTerms, tables)
        _check_models(config, terms)
        keys.change_key(connection, terms)
    if as_json:
        options.print_json(asdict(terms))


@app.command("revoke")
def revoke(config: Config, name: Name, as_json: options.Json = False) -> None:
    """End a key; servers that run know within a second or two.

    Example: [bold]moestro keys revoke fleet.toml alice[/bold]
    """
    from moestro.records import keys

    with closing(_open(config)) as database, database.write() as connection:
        keys.revoke_key(connection, name)
    if as_json:
        options.print_json({"name": name, "revoked": True})


def _what_the_first_changes(config: Path, terms: KeyTerms) -> str:
    text = "from now on the server asks everybody for a key"
    if terms.is_admin:
        return text
    return f"{text}; one that may make others: moestro keys add {config} NAME --set is_admin=true"


def _build_terms(name: str, assignments: list[str], days: float | None) -> KeyTerms:
    tables: dict[str, Any] = settings.override({}, assignments)
    return settings.build(KeyTerms, tables | {"name": name} | _end_after(days))


def _end_after(days: float | None) -> dict[str, float]:
    return {} if days is None else {"expires_at": time.time() + days * _DAY_S}


def _check_models(config: Path, terms: KeyTerms) -> None:
    """Raise ConfigError if a key allows what the fleet of its configuration does not have."""
    models = _load(config).get("models", [])
    known = [str(model.get("name")) for model in models] + [AUTO]
    for name in terms.allowed_models or ():
        # A file of records alone does not say which models there are.
        if models and name not in known:
            raise ConfigError(
                f"allowed_models has {name}, which the fleet lacks: choose {', '.join(known)}"
            )


def _load(config: Path) -> dict[str, Any]:
    """Read a gateway's file; ConfigError for one whose server would not ask for these keys."""
    tables = settings.load(config)
    if "model" in tables:
        raise ConfigError(
            f"{config}: serves one model, by the keys under server.keys.allowed: put the model"
            " under [[models]] for keys with budgets"
        )
    if "models" not in tables and "records" not in tables:
        raise ConfigError(
            f"{config}: has neither [[models]] nor [records]: give the file that `moestro serve`"
            " gets"
        )
    return tables


def _open(config: Path) -> "Database":
    from moestro.records.config import RecordsConfig
    from moestro.records.database import Database

    records = settings.build(RecordsConfig, _load(config).get("records", {}), "records.")
    database = Database(records)
    database.open()
    return database


def _to_dict(view: "KeyView") -> dict[str, Any]:
    values = asdict(view)
    return {**values.pop("terms"), **values}


def _to_cells(view: "KeyView") -> tuple[str, ...]:
    terms = view.terms
    if view.revoked_at is not None:
        state = f"revoked {datetime.fromtimestamp(view.revoked_at, UTC):%Y-%m-%d}"
    else:
        state = "usable" if view.is_usable else "expired"
        if view.is_usable and terms.expires_at is not None:
            state += f" to {datetime.fromtimestamp(terms.expires_at, UTC):%Y-%m-%d}"
        state += ", admin" if terms.is_admin else ""
    budgets = [f"${terms.budget_usd:g}"] if terms.budget_usd is not None else []
    budgets += [f"{terms.budget_tokens:,} tokens"] if terms.budget_tokens is not None else []
    budget = f"{' and '.join(budgets)} / {terms.budget_period}" if budgets else "none"
    rates = {
        "requests/min": terms.requests_per_minute,
        "tokens/min": terms.tokens_per_minute,
        "at once": terms.concurrent_requests,
    }
    limits = [f"{most:,} {unit}" for unit, most in rates.items() if most is not None]
    models = "all" if terms.allowed_models is None else ", ".join(terms.allowed_models)
    return (
        terms.name, state, f"${view.spent_usd:.4f}", f"{view.spent_tokens:,}", budget,
        ", ".join(limits), models,
    )  # fmt: skip
