"""`moestro policy`: learn from outcomes which model a request needs, and say what that is worth.

Commands register on `app`. Next: policy/policy.py.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from moestro import settings
from moestro.cli import options
from moestro.cli.policy_findings import show
from moestro.errors import ConfigError
from moestro.policy.build import build_pair, build_pool, join
from moestro.policy.learn import LearnConfig
from moestro.policy.outcome_files import read_outcomes
from moestro.policy.policy import Policy
from moestro.policy.prices import Price, build_prices, read_prices
from moestro.policy.report import report as measure
from moestro.policy.store import is_calibrated, load_policy, save_policy

log = logging.getLogger(__name__)

app = typer.Typer(help="Learn which model a request needs, and how good that is.")

Folder = Annotated[
    Path, typer.Argument(help="A folder that `moestro policy fit` wrote.", show_default=False)
]
Recorded = Annotated[
    list[Path],
    typer.Argument(
        help="CSV with a column prompt and one of scores for each model, or JSON lines.",
        show_default=False,
    ),
]
Prices = Annotated[
    Path | None,
    typer.Option(
        "--prices",
        help="JSON: by model, input_price and output_price per million tokens.",
        show_default=False,
    ),
]


@app.command("fit")
def fit(
    outcomes: Recorded,
    out: Annotated[
        Path, typer.Option("--out", help="Folder to write the policy to.", show_default=False)
    ],
    weak: Annotated[
        str | None, typer.Option("--weak", help="The cheaper of a pair.", show_default=False)
    ] = None,
    strong: Annotated[
        str | None, typer.Option("--strong", help="The better of a pair.", show_default=False)
    ] = None,
    prices: Prices = None,
    overrides: Annotated[list[str] | None, options.settings_like("learn.num_topics=24")] = None,
    as_json: options.Json = False,
) -> None:
    """Learn a policy: for a pair of models, or for a pool of all if none are named.

    Example: [bold]moestro policy fit outcomes.csv --weak small --strong large --out mine[/bold]
    """
    if (weak is None) != (strong is None):
        raise ConfigError("--weak and --strong go together: name both, or neither for a pool")
    tables = settings.override({}, overrides or [])
    listed = _prices(prices, tables.pop("prices", {}))
    config = settings.build(LearnConfig, tables.pop("learn", {}), "learn.")
    if tables:
        raise ConfigError(f"--set {next(iter(tables))}: unknown setting. known: learn, prices")
    pair = (weak, strong) if weak is not None and strong is not None else ()
    recorded = read_outcomes(outcomes, pair)
    options.say(f"learning from {len(recorded.prompts):,} rows")
    if pair:
        policy = build_pair(recorded, *pair, listed, config)
    else:
        policy = build_pool(recorded, listed, config)
    had_floor = is_calibrated(out)
    save_policy(policy, out)
    if had_floor:
        _warn_of_lost_floor(out)
    if as_json:
        named = {"folder": str(out), "kind": policy.kind, "models": policy.models}
        options.print_json(named | dict(policy.training))
    else:
        _show_fitted(policy, out)


@app.command("report")
def report(policy: Folder, outcomes: Recorded, as_json: options.Json = False) -> None:
    """Measure a policy on outcomes that it did not learn from, beside simple baselines.

    Example: [bold]moestro policy report mine held_out.csv --json[/bold]
    """
    loaded = load_policy(policy)
    result = measure(loaded, read_outcomes(outcomes, loaded.models))
    warn_of_seen(result)
    if as_json:
        options.print_json(result)
    else:
        show(result)


@app.command("join")
def join_model(
    policy: Folder,
    outcomes: Recorded,
    model: Annotated[
        str, typer.Option("--model", help="The model that joins.", show_default=False)
    ],
    prices: Prices = None,
    overrides: Annotated[list[str] | None, options.settings_like("prices.newcomer=0.1")] = None,
    as_json: options.Json = False,
) -> None:
    """Add a model to a pool from 100 or fewer scored prompts, without learning the rest again.

    Example: [bold]moestro policy join mine scored.csv --model newcomer[/bold]
    """
    tables = settings.override({}, overrides or [])
    listed = _prices(prices, tables.pop("prices", {}))
    if tables:
        raise ConfigError(f"--set {next(iter(tables))}: unknown setting. known: prices")
    scored = read_outcomes(outcomes, (model,))
    loaded = load_policy(policy)
    grown = join(loaded, scored, model, listed.get(model))
    save_policy(grown, policy)
    if loaded.threshold is not None:
        _warn_of_lost_floor(policy)
    if as_json:
        options.print_json({"folder": str(policy), "joined": model, "models": grown.models})
    else:
        Console().print(
            f"policy written to {policy}: {model} joined {', '.join(loaded.models)}", markup=False
        )


def warn_of_seen(result: Mapping[str, Any]) -> None:
    """Say if figures rest on rows that the policy learned from: there it looks too good."""
    num_seen, num_rows = result["num_rows_seen"], result["num_rows"]
    if num_seen:
        log.warning(
            "the policy learned from %s of these %s rows, where it looks better than it is:"
            " give rows that `moestro policy fit` did not see",
            f"{num_seen:,}",
            f"{num_rows:,}",
        )


def _warn_of_lost_floor(folder: Path) -> None:
    log.warning(
        "the floor was shown for the policy of before, and holds no more: run"
        " `moestro policy calibrate %s` again",
        folder,
    )


def _prices(path: Path | None, given: object) -> dict[str, Price]:
    if not isinstance(given, dict):
        raise ConfigError(f"prices is {given!r}: give prices.NAME=NUMBER, in dollars")
    listed = read_prices(path) if path is not None else {}
    # A name with dots comes as nested tables.
    return listed | build_prices(_flat(given))


def _flat(tables: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        name = f"{prefix}{key}"
        is_price = isinstance(value, dict) and any(
            word.startswith(("input", "output")) for word in value
        )
        flat |= (
            _flat(value, f"{name}.") if isinstance(value, dict) and not is_price else {name: value}
        )
    return flat


def _show_fitted(policy: Policy, folder: Path) -> None:
    training = policy.training
    people = Console(highlight=False, soft_wrap=True)
    how = ", with a verifier of its answers" if training.get("has_verifier") else ""
    people.print(
        f"policy written to {folder}: a {policy.kind}, learned from"
        f" {training['num_rows']:,} rows{how}",
        markup=False,
    )
    for name, score in training["mean_scores"].items():
        people.print(f"  {score:.3f}  {name}", markup=False)
    people.print(
        f"next, with rows that are not among these: moestro policy calibrate {folder} LATER.csv",
        markup=False,
    )
