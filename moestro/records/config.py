"""Where records are kept, for how long, and which answers may be given twice.

Knows no database. Next: records.py.
"""

from dataclasses import dataclass, field

from moestro.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Answers to deterministic requests, kept to be given again; off unless it is asked for."""

    enabled: bool = False
    """Whether answers are kept."""
    max_age_s: float = 86_400.0
    """Seconds for which one is. Limits: above 0."""
    max_bytes: int = 256 * 2**20
    """Bytes of all that are kept. Limits: above 0."""
    max_answer_bytes: int = 2**20
    """Longer answers are not kept. Limits: above 0."""
    is_shared: bool = False
    """Let one key have what another one asked for; by default each has its own."""

    def __post_init__(self) -> None:
        for name in ("max_age_s", "max_bytes", "max_answer_bytes"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be above 0")


@dataclass(frozen=True, kw_only=True)
class RecordsConfig:
    """Where decisions, usage and keys are kept, and for how long."""

    url: str = "sqlite:///moestro.db"
    """A database by URL: a file of SQLite's, or `postgresql+psycopg://user@host/name`."""
    password: str | None = None
    """The database's, as `env:` and a variable's name, instead of in the URL."""
    keeps_prompts: bool = False
    """Keep prompts and answers with their decisions."""
    retention_days: int | None = 90
    """Days that decisions, outcomes and answers stay, none for ever; usage stays.
    Limits: 1 or more."""
    max_waiting_records: int = 20_000
    """Records that may wait to be written; more are lost, and counted. Limits: 1 or more."""
    flush_s: float = 0.2
    """Seconds between two writes. Limits: above 0, at most 60."""
    poll_s: float = 0.5
    """Seconds after which each process looks for changed keys and usage.
    Limits: above 0, at most 60."""
    assumed_answer_tokens: int = 1024
    """Answer tokens that a request without `max_tokens` reserves of its key's budget.
    Limits: 1 or more."""
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
