"""Which of a model's backends gets the next request: the least loaded for its weight.

Pure. Next: queue.py.
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One backend as it is now; `latency_s` is its usual time to a first byte, if known."""

    name: str
    weight: float
    num_in_flight: int
    max_concurrent: int
    may_ask: bool


def order(
    candidates: Sequence[Candidate], tried: Collection[str], chance: random.Random
) -> list[Candidate]:
    """Return who may be asked, the best first: those not tried before, then the least loaded.

    Between equals chance decides, by weight: so a light load is shared out as well.
    """
    asked = [each for each in candidates if each.may_ask]
    drawn = {each.name: chance.random() ** (1 / each.weight) for each in asked}
    return sorted(
        asked,
        key=lambda each: (
            each.name in tried,
            (each.num_in_flight + 1) / each.weight if each.num_in_flight else 0.0,
            -drawn[each.name],
        ),
    )
