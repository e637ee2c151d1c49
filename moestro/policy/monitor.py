"""Does the floor still hold? Two watches over live traffic, to be looked at after every request.

`FloorMonitor` bets on audited requests, which the strongest model answered too, that the policy's
quality is below the floor: an e-process, so false alarms have a stated chance however often one
looks (Waudby-Smith and Ramdas, arXiv 2010.09686; Shafer, "Testing by betting", 2021).
`ShiftMonitor` needs no scores: it bets that requests stopped looking like the calibration rows, by
a conformal test martingale (Vovk et al., arXiv 2102.10439). Both stay with the strongest model once
they have alarmed, until a new calibration. State is a small JSON object that workers share: read
it, observe what came since, write it. Next: audit.py.
"""

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from moestro.errors import ConfigError, DataError
from moestro.policy.betting import Fortune

# Of what one audit can lose at most, as bettors stake it.
_STAKES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7)
# Bettors on p-values that lean to small ones, to large ones, or to both ends.
_LEANINGS = ("small", "large", "ends")
# Below this no alarm has ever been justified; it keeps a bettor in the game after a p-value of 0.
_SMALLEST_P = 1e-6
_NUM_BINS = 64


class FloorMonitor:
    """Tests, at every audit, that the policy still keeps `floor` of the strongest one's score."""

    def __init__(self, floor: float, false_alarm: float = 0.05) -> None:
        if not 0.0 < floor <= 1.0:
            raise ConfigError(f"floor is {floor:g}: give a share above 0 and at most 1")
        self.floor = floor
        self.false_alarm = _checked_chance(false_alarm)
        self.is_held = True
        self._fortune = Fortune(len(_STAKES))

    @property
    def num_audits(self) -> int:
        """How many audits were observed."""
        return self._fortune.num_rows

    @property
    def evidence(self) -> float:
        """How much speaks against the floor, as odds: 1 is nothing, 1 / false_alarm is an alarm."""
        return math.exp(min(self._fortune.log_wealth, 700.0))

    def observe(self, policy_score: float, strongest_score: float) -> None:
        """Count one audit: what the model the policy chose scored, and what the strongest did."""
        for name, score in (("policy", policy_score), ("strongest", strongest_score)):
            if not 0.0 <= score <= 1.0:
                raise DataError(f"{name} score is {score:g}: give a score from 0 to 1")
        if not self.is_held:
            return
        lost = self.floor * strongest_score - policy_score
        self._fortune.play([1.0 + stake * lost for stake in _STAKES])
        self.is_held = self._fortune.log_wealth < -math.log(self.false_alarm)

    def merge(self, audits: Iterable[tuple[float, float]]) -> Self:
        """Observe what several workers saw, in the order given; return this monitor."""
        for policy_score, strongest_score in audits:
            self.observe(policy_score, strongest_score)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON has it."""
        return {
            "floor": self.floor,
            "false_alarm": self.false_alarm,
            "is_held": self.is_held,
            **_pack(self._fortune),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Rebuild a monitor from `to_dict`; anything else is a DataError."""
        with _StateErrors("floor"):
            monitor = cls(float(state["floor"]), float(state["false_alarm"]))
            monitor.is_held = bool(state["is_held"])
            monitor._fortune = _unpack(state, len(_STAKES))
        return monitor


class ShiftMonitor:
    """Tests, at every request, that traffic still looks like the calibration rows.

    A request is seen as a few numbers (`signs`, by name). Each gets a rank among those of the
    calibration rows and of all requests before it: under exchangeable traffic these ranks are
    independent and even, whatever the numbers mean.
    """

    def __init__(
        self, counts: Mapping[str, Sequence[int]], false_alarm: float = 0.01, is_held: bool = True
    ) -> None:
        if not counts or any(len(b) != _NUM_BINS or min(b) < 0 for b in counts.values()):
            raise DataError(f"a reference needs {_NUM_BINS} counts for each of its signs")
        self.false_alarm = _checked_chance(false_alarm)
        self.is_held = is_held
        self._counts = {name: list(bins) for name, bins in sorted(counts.items())}
        self._fortune = Fortune(len(self._counts) * len(_LEANINGS))

    @property
    def num_requests(self) -> int:
        """How many requests were observed."""
        return self._fortune.num_rows

    @property
    def evidence(self) -> float:
        """How much speaks for a shift, as odds: 1 is nothing, 1 / false_alarm is an alarm."""
        return math.exp(min(self._fortune.log_wealth, 700.0))

    def observe(self, signs: Mapping[str, float], chance: float) -> None:
        """Count one request; `chance`, even in 0..1 and drawn apart from it, breaks ties."""
        if set(signs) != set(self._counts):
            raise DataError(f"signs are {sorted(signs)}: give those of {sorted(self._counts)}")
        if not self.is_held:
            return
        factors: list[float] = []
        for name, bins in self._counts.items():
            place = bin_of(signs[name])
            bins[place] += 1
            below, total = sum(bins[:place]), sum(bins)
            factors += _pay((below + chance * bins[place]) / total)
        self._fortune.play(factors)
        self.is_held = self._fortune.log_wealth < -math.log(self.false_alarm)

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON has it."""
        return {
            "counts": {name: list(bins) for name, bins in self._counts.items()},
            "false_alarm": self.false_alarm,
            "is_held": self.is_held,
            **_pack(self._fortune),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Rebuild a monitor from `to_dict`; anything else is a DataError."""
        with _StateErrors("shift"):
            counts = {name: [int(n) for n in bins] for name, bins in state["counts"].items()}
            monitor = cls(counts, float(state["false_alarm"]), bool(state["is_held"]))
            monitor._fortune = _unpack(state, len(counts) * len(_LEANINGS))
        return monitor


def count_signs(rows: Iterable[Mapping[str, float]]) -> dict[str, list[int]]:
    """Return the reference that a ShiftMonitor starts from: counts of the calibration rows."""
    counts: dict[str, list[int]] = {}
    for signs in rows:
        for name, value in signs.items():
            counts.setdefault(name, [0] * _NUM_BINS)[bin_of(value)] += 1
    return counts


def bin_of(value: float) -> int:
    """Return the bin of a sign in -1..1; the limits are fixed before any traffic is seen."""
    if not -1.0 <= value <= 1.0:
        raise DataError(f"sign is {value:g}: give a number from -1 to 1")
    return bisect.bisect_right(_LIMITS, value)


def _limits() -> list[float]:
    # Finer around 0, where estimated gains and small shares lie.
    steps = [2.0 * k / _NUM_BINS - 1.0 for k in range(1, _NUM_BINS)]
    return [math.copysign(abs(step) ** 2, step) for step in steps]


_LIMITS = _limits()


def _pay(p: float) -> tuple[float, float, float]:
    # Each averages 1 over an even p.
    p = min(max(p, _SMALLEST_P), 1.0 - _SMALLEST_P)
    edge = min(p, 1.0 - p) * 2.0
    return 0.5 * p**-0.5, 0.5 * (1.0 - p) ** -0.5, 0.5 * edge**-0.5


def _checked_chance(chance: float) -> float:
    if not 0.0 < chance < 1.0:
        raise ConfigError(f"false_alarm is {chance:g}: give a probability above 0 and below 1")
    return chance


def _pack(fortune: Fortune) -> dict[str, Any]:
    # JSON has no infinity: a bettor who has not begun yet is null.
    logs = [log if math.isfinite(log) else None for log in fortune.logs]
    return {"num": fortune.num_rows, "logs": logs}


def _unpack(state: Mapping[str, Any], num_bettors: int) -> Fortune:
    logs = [-math.inf if log is None else float(log) for log in state["logs"]]
    if len(logs) != num_bettors or not int(state["num"]) >= 0:
        raise ValueError(f"{len(logs)} logs")
    return Fortune(num_bettors, logs, int(state["num"]))


_DAMAGE = (AttributeError, KeyError, TypeError, ValueError, OverflowError, ConfigError)


class _StateErrors:
    """Turns what a damaged state raises into one line."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: object, _: object) -> None:
        if kind is not None and issubclass(kind, _DAMAGE):
            raise DataError(
                f"the {self.name} monitor's state is damaged ({kind.__name__}: {error}): start anew"
            )
