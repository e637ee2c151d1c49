"""`moestro policy calibrate`: a quality floor, shown on outcomes the policy did not learn from.

Next: policy/calibrate.py.
"""

from typing import Annotated

import typer
from rich.console import Console

from moestro.cli import options
from moestro.cli.policy import Folder, Recorded, warn_of_seen
from moestro.policy.calibrate import calibrate as find_threshold
from moestro.policy.guarantee import Promise
from moestro.policy.outcome_files import read_outcomes
from moestro.policy.store import load_policy, save_policy


def calibrate(
    policy: Folder,
    outcomes: Recorded,
    floor: Annotated[
        float, typer.Option("--floor", help="Share of the strongest model's quality to keep.")
    ] = 0.95,
    confidence: Annotated[
        float, typer.Option("--confidence", help="With what confidence; 0.95 is 19 in 20.")
    ] = 0.95,
    as_json: options.Json = False,
) -> None:
    """Choose the cheapest threshold that keeps a quality floor, and say what that promises.

    Example: [bold]moestro policy calibrate mine later.csv --floor 0.95[/bold]
    """
    promise = Promise(floor=floor, confidence=confidence)
    loaded = load_policy(policy)
    calibrated = find_threshold(loaded, read_outcomes(outcomes, loaded.models), promise)
    save_policy(calibrated, policy)
    warn_of_seen(calibrated.evidence)
    if as_json:
        options.print_json(
            {"folder": str(policy), **calibrated.evidence, "threshold": calibrated.threshold}
        )
        return
    how = "A cascade: the weak model answers first. " if calibrated.asks_weak_first else ""
    Console().print(f"{how}{calibrated.evidence['promise']}.", markup=False)
