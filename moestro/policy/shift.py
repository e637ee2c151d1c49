"""Do requests still look like the calibration rows? To be looked at after every request.

`ShiftMonitor` needs no scores. It sees of a request a few numbers, its signs, and bets that more
of them lie below (or above) some value than did among the calibration rows. What it tests is:

    given all requests before it, the chance that a sign of the next request is at most x lies
    within `tolerance` of that of a calibration row, for every sign and every x.

Two things may go wrong, each with half of the chance of a false alarm. The calibration rows may
misrepresent where they were drawn from: by Massart's form of the Dvoretzky-Kiefer-Wolfowitz
inequality (1990) the shares of k signs among n rows are all off by less than sqrt(log(4k/a) / 2n),
but for a chance of a/2; this is added to the tolerance. And bets may win by luck: a bettor on "at
most x" with the share m, margins included, is paid q/m where it is so and (1-q)/(1-m) where it is
not, for a q above m. That averages at most 1 whenever the chance is at most m. As every bettor
knows the same past, all signs of all requests, a mean over them is an e-process too, however signs
hang together, and passes 2/a with a chance of at most a/2 (Ville; Waudby-Smith and Ramdas, arXiv
2010.09686). No order of calibration rows and requests is assumed to be alike, no ties are broken.

A shift within the tolerance is left to audits, which see quality itself: without one, every
difference, however harmless, would be found in time. Next: monitor.py, audit.py.
"""

import math
from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from moestro.errors import ConfigError, DataError
from moestro.policy.betting import Fortune
from moestro.policy.monitor import StateErrors, checked_chance

Floats = NDArray[np.float64]

FALSE_ALARM = 0.01
# Values that bets are on: between every two of them lies as large a part of the calibration rows.
_QUANTILES = np.linspace(0.1, 0.9, 9)
# How far towards certainty a bettor takes the share to have gone. Bold ones are sure after a dozen
# requests; shy ones need some fifty, and so are not alarmed by a short run of requests of one kind.
_REACH = 0.1
_DIGITS = 6


class ShiftMonitor:
    """Tests, at every request, that its signs are distributed as among the calibration rows.

    `reference` is what `describe_signs` said of those rows.
    """

    def __init__(
        self,
        reference: Mapping[str, Any],
        tolerance: float = 0.1,
        false_alarm: float = FALSE_ALARM,
    ) -> None:
        if not 0.0 <= tolerance <= 1.0:
            raise ConfigError(f"tolerance is {tolerance:g}: give a share from 0 to 1")
        self.tolerance = tolerance
        self.false_alarm = checked_chance(false_alarm)
        self.is_held = True
        with StateErrors("shift monitor's reference", "calibrate again"):
            self._names = sorted(reference["signs"])
            num_rows, num_signs = int(reference["num_rows"]), len(self._names)
            self.margin = math.sqrt(math.log(4 * num_signs / false_alarm) / (2 * num_rows))
            bettors = [
                bettor
                for place, name in enumerate(self._names)
                for value, share in reference["signs"][name]
                for bettor in _bettors(place, value, share, tolerance + self.margin)
            ]
        self._place_B = np.array([b[0] for b in bettors], dtype=np.int64)
        self._value_B, self._win_B, self._loss_B = (
            np.array([b[1:4] for b in bettors], dtype=np.float64).reshape(-1, 3).T
        )
        self._is_above_B = np.array([b[4] for b in bettors], dtype=bool)
        self._fortune = Fortune(len(bettors))

    @property
    def num_requests(self) -> int:
        """How many requests were observed."""
        return self._fortune.num_rows

    @property
    def evidence(self) -> float:
        """How much speaks for a shift, as odds: 1 is nothing, `alarm_at` is an alarm."""
        return self._fortune.odds

    @property
    def alarm_at(self) -> float:
        """The odds at which a shift is taken for one."""
        return 2.0 / self.false_alarm

    def observe(self, signs: Mapping[str, float]) -> None:
        """Count one request."""
        if set(signs) != set(self._names):
            raise DataError(f"signs are {sorted(signs)}: give those of {self._names}")
        values = np.array([signs[name] for name in self._names])
        if not np.isfinite(values).all():
            raise DataError(f"signs are {dict(signs)}: give numbers")
        if not self.is_held:
            return
        is_won_B = (values[self._place_B] <= self._value_B) ^ self._is_above_B
        self._fortune.play(np.where(is_won_B, self._win_B, self._loss_B))
        self.is_held = self._fortune.log_wealth < math.log(self.alarm_at)

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON has it; the reference is not in it."""
        return {"is_held": self.is_held, **self._fortune.to_dict()}

    def renewed(self, state: Mapping[str, Any]) -> Self:
        """Return such a monitor as it was when `to_dict` returned `state`, new where it is empty.

        Anything else is a DataError.
        """
        other = copy(self)
        with StateErrors("shift monitor's state"):
            given = state or {"is_held": True, **Fortune(len(self._place_B)).to_dict()}
            other._fortune = Fortune.from_dict(given, len(self._place_B))
            other.is_held = bool(given["is_held"])
        return other


def describe_signs(rows: Iterable[Mapping[str, float]]) -> dict[str, Any]:
    """Return what a ShiftMonitor must know of calibration rows: shares at some values, by sign."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    sizes = set(map(len, columns.values()))
    if len(sizes) != 1:
        raise DataError(f"{len(sizes)} numbers of rows: give at least one row, and all its signs")
    return {
        "num_rows": sizes.pop(),
        "signs": {name: _describe(np.array(values)) for name, values in columns.items()},
    }


def _describe(values_N: Floats) -> list[list[float]]:
    # Rounded first, so that the share is that of the value as it is kept.
    found = np.unique(np.round(np.quantile(values_N, _QUANTILES), _DIGITS))
    return [[float(value), float((values_N <= value).mean())] for value in found]


def _bettors(
    place: int, value: float, share: float, margin: float
) -> Iterable[tuple[int, float, float, float, bool]]:
    """Yield sign, value, what is paid if won and if lost, and whether it is on "above"."""
    for is_above, part in ((False, share), (True, 1.0 - share)):
        most = part + margin
        if most < 1.0:
            believed = most + _REACH * (1.0 - most)
            yield place, value, believed / most, 1.0 - _REACH, is_above
