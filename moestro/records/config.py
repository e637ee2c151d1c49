"""Where records are kept, for how long, and which answers may be given twice.

Knows no database. Next: records.py.
"""

from dataclasses import dataclass, field

from moestro.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Answers to deterministic requests, kept to be given again; off unless it is asked for.

    `is_shared` lets one key have what another one asked for; by default each has its own.
    """

    enabled: bool = False
    max_age_s: float = 86_400.0
    max_bytes: int = 256 * 2**20
    max_answer_bytes: int = 2**20
    is_shared: bool = False

    def __post_init__(self) -> None:
        for name in ("max_age_s", "max_bytes", "max_answer_bytes"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be above 0")


@dataclass(frozen=True, kw_only=True)
class RecordsConfig:
    """A database by URL: a file of SQLite's, or `postgresql+psycopg://user@host/name`.

    `retention_days` is how long decisions, outcomes and answers stay, None for ever; usage stays.
    A password may stand in `password` as "env:" and a variable's name instead of in the URL.
    """

    url: str = "sqlite:///moestro.db"
    password: str | None = None
    keeps_prompts: bool = False
    retention_days: int | None = 90
    max_waiting_records: int = 20_000
    flush_s: float = 0.2
    poll_s: float = 0.5
    # Answer tokens that a request without `max_tokens` reserves of its key's budget.
    assumed_answer_tokens: int = 1024
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        if self.retention_days is not None and self.retention_days < 1:
            raise ConfigError(
                f"retention_days is {self.retention_days}: it must be 1 or more, or none"
            )
        for name in ("max_waiting_records", "assumed_answer_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        for name in ("flush_s", "poll_s"):
            if not 0 < getattr(self, name) <= 60:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}: it must be above 0, at most 60"
                )
