"""Days, months and the total, in UTC: which one a moment belongs to, and when it ends.

Pure. Next: meters.py.
"""

from datetime import UTC, datetime, timedelta
from functools import lru_cache

from moestro.api.key_terms import PERIODS, BudgetPeriod

_DAY_S = 86_400
_LENGTHS = {"day": 10, "month": 7}


def day_of(moment: float) -> str:
    """Return the day of a moment, like "2026-11-26"."""
    return _day(int(moment // _DAY_S))


def period_of(period: BudgetPeriod, moment: float) -> str:
    """Return the name of the period that a moment belongs to: "2026-11-26", "2026-11", "total"."""
    return "total" if period == "total" else day_of(moment)[: _LENGTHS[period]]


def periods_of(moment: float) -> tuple[str, ...]:
    """Return all periods that a moment belongs to."""
    return tuple(period_of(period, moment) for period in PERIODS)


def end_of(period: BudgetPeriod, moment: float) -> float | None:
    """Return when the moment's period ends, None if never."""
    start = datetime.fromtimestamp(moment, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return (start + timedelta(days=1)).timestamp()
    if period == "month":
        # Every month ends within 31 days of any of its days.
        return (start.replace(day=1) + timedelta(days=32)).replace(day=1).timestamp()
    return None


@lru_cache(maxsize=64)
def _day(number: int) -> str:
    # Asked for at every request, and writing a date takes microseconds.
    return datetime.fromtimestamp(number * _DAY_S, UTC).strftime("%Y-%m-%d")
