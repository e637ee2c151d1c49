"""What a user's key allows: budgets, rates, models; the key itself is nowhere in here.

Plain values, checked once. Knows no database. Next: record_view.py.
"""

import math
from dataclasses import dataclass
from typing import Literal

from moestro.api.cards import AUTO
from moestro.errors import ConfigError

# Periods are those of UTC: a day from midnight, a month from its first day; a total never ends.
BudgetPeriod = Literal["day", "month", "total"]
PERIODS: tuple[BudgetPeriod, ...] = ("day", "month", "total")

_LONGEST_NAME = 64

# What databases, doubles and calendars have room for.
_MOST_AT_ONCE = 2**31 - 1
_MOST_TOKENS = 2**53
_LATEST = 253_402_300_799


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyTerms:
    """What one key may spend and ask for; none is no limit."""

    name: str
    """Whose key it is. Limits: 1 to 64 printable characters."""
    budget_usd: float | None = None
    """Dollars per period. Limits: 0 or more."""
    budget_tokens: int | None = None
    """Tokens per period, of prompts and answers together. Limits: 0 to 9007199254740992."""
    budget_period: BudgetPeriod = "month"
    """Days and months are those of UTC; a total never ends."""
    requests_per_minute: int | None = None
    """Requests in a minute. Limits: 1 to 2147483647."""
    tokens_per_minute: int | None = None
    """Tokens of prompts and answers together in a minute. Limits: 1 to 2147483647."""
    concurrent_requests: int | None = None
    """Requests at the same time. Limits: 1 to 2147483647."""
    allowed_models: tuple[str, ...] | None = None
    """Names that a client may ask for besides `auto`, none for all: with `auto` among them it may
    be sent to any model that `auto` chooses among, else only to those named."""
    is_admin: bool = False
    """Whether it may see the pages and change keys."""
    expires_at: float | None = None
    """When it ends, in seconds since 1970; `--days` sets it.
    Limits: 0 to 253402300799, the end of the year 9999."""

    def __post_init__(self) -> None:
        if not self.name.strip() or len(self.name) > _LONGEST_NAME or not self.name.isprintable():
            raise ConfigError(
                f"a key's name is {self.name[: _LONGEST_NAME + 1]!r}: it must be 1 to"
                f" {_LONGEST_NAME} printable characters"
            )
        if self.budget_period not in PERIODS:
            raise ConfigError(
                f"budget_period is {self.budget_period!r}: it must be one of {', '.join(PERIODS)}"
            )
        for name in ("requests_per_minute", "tokens_per_minute", "concurrent_requests"):
            _check_span(name, getattr(self, name), 1, _MOST_AT_ONCE)
        _check_span("budget_usd", self.budget_usd, 0, math.inf)
        _check_span("budget_tokens", self.budget_tokens, 0, _MOST_TOKENS)
        _check_span("expires_at", self.expires_at, 0, _LATEST)

    def allows(self, model: str) -> bool:
        """Tell whether the key's requests may be sent to a model of this name."""
        allowed = self.allowed_models
        return allowed is None or AUTO in allowed or model in allowed


def _check_span(name: str, value: float | None, least: int, most: float) -> None:
    if value is None or (least <= value <= most and value < math.inf):
        return
    limits = f"{least} or more" if most == math.inf else f"{least} to {most}"
    raise ConfigError(f"{name} is {value}: it must be {limits}, or left out")
