"""Does the floor still hold on live traffic? To be looked at after every audit.

`FloorMonitor` bets on audited requests, which the strongest model answered too, that the policy's
quality is below the floor: an e-process, so false alarms have a stated chance however often one
looks (Waudby-Smith and Ramdas, arXiv 2010.09686; Shafer, "Testing by betting", 2021). Once it has
alarmed it stays so, until a new calibration. Its state is a small JSON object that workers share:
read it, observe what came since, write it. Next: shift.py, audit.py.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Self

from moestro.errors import ConfigError, DataError
from moestro.policy.betting import Fortune

# Of what one audit can lose at most, as bettors stake it.
_STAKES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7)


class FloorMonitor:
    """Tests, at every audit, that the policy still keeps `floor` of the strongest one's score."""

    def __init__(self, floor: float, false_alarm: float = 0.05) -> None:
        if not 0.0 < floor <= 1.0:
            raise ConfigError(f"floor is {floor:g}: give a share above 0 and at most 1")
        self.floor = floor
        self.false_alarm = checked_chance(false_alarm)
        self.is_held = True
        self._fortune = Fortune(len(_STAKES))

    @property
    def num_audits(self) -> int:
        """How many audits were observed."""
        return self._fortune.num_rows

    @property
    def evidence(self) -> float:
        """How much speaks against the floor, as odds: 1 is nothing, `alarm_at` is an alarm."""
        return self._fortune.odds

    @property
    def alarm_at(self) -> float:
        """The odds at which the floor is lost."""
        return 1.0 / self.false_alarm

    def observe(self, policy_score: float, strongest_score: float) -> None:
        """Count one audit: what the model the policy chose scored, and what the strongest did."""
        for name, score in (("policy", policy_score), ("strongest", strongest_score)):
            if not 0.0 <= score <= 1.0:
                raise DataError(f"{name} score is {score:g}: give a score from 0 to 1")
        if not self.is_held:
            return
        lost = self.floor * strongest_score - policy_score
        self._fortune.play([1.0 + stake * lost for stake in _STAKES])
        self.is_held = self._fortune.log_wealth < math.log(self.alarm_at)

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
            **self._fortune.to_dict(),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Rebuild a monitor from `to_dict`; anything else is a DataError."""
        with StateErrors("floor monitor's state"):
            monitor = cls(float(state["floor"]), float(state["false_alarm"]))
            monitor.is_held = bool(state["is_held"])
            monitor._fortune = Fortune.from_dict(state, len(_STAKES))
        return monitor


def checked_chance(chance: float) -> float:
    """Return the chance of a false alarm; ConfigError for what is none."""
    if not 0.0 < chance < 1.0:
        raise ConfigError(f"false_alarm is {chance:g}: give a probability above 0 and below 1")
    return chance


_DAMAGE = (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, ConfigError)


class StateErrors:
    """Turns what a damaged state raises into one line that says what to do."""

    def __init__(self, name: str, remedy: str = "start anew") -> None:
        self._name = name
        self._remedy = remedy

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: object, _: object) -> None:
        if kind is not None and issubclass(kind, _DAMAGE):
            raise DataError(
                f"the {self._name} is damaged ({kind.__name__}: {error}): {self._remedy}"
            )
