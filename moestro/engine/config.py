"""An engine's settings. Knows no torch. Next: engine.py."""

from dataclasses import dataclass, field
from typing import Literal

from moestro.errors import ConfigError

DraftMode = Literal["auto", "always", "off"]
EngineDtype = Literal["auto", "checkpoint", "float32", "bfloat16", "int8", "int4"]

# Longer, readers would see answers come in jerks.
_MOST_BURST_S = 0.1


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The paged cache of latents, shared by all requests."""

    block_size: int = 64
    """Tokens of a block. Limits: 16 or more, a multiple of 16."""
    num_tokens: int | None = None
    """Tokens that the cache holds; none takes what `max_batch` requests of full length need, up to
    a quarter of the free memory.
    Limits: `block_size` or more."""
    has_prefix_reuse: bool = True
    """Let requests share the blocks of an equal beginning."""

    def __post_init__(self) -> None:
        # Attention over whole blocks keeps its bits only in multiples of the widest vectors.
        if self.block_size < 16 or self.block_size % 16:
            raise ConfigError(
                f"block_size is {self.block_size}: it must be a multiple of 16, 16 or more"
            )
        if self.num_tokens is not None and self.num_tokens < self.block_size:
            raise ConfigError(
                f"num_tokens is {self.num_tokens}: the cache must hold a block, {self.block_size}"
            )


@dataclass(frozen=True, kw_only=True)
class DraftConfig:
    """Speculative decoding with the checkpoint's MTP modules, one draft for each of them."""

    mode: DraftMode = "auto"
    """auto drafts only while that makes answers faster."""


@dataclass(frozen=True, kw_only=True)
class PressureConfig:
    """How the budget of requests with `experts` "auto" follows the queue."""

    steps: int = 5
    """Budgets to step through, from the model's most experts to its fewest. Limits: 2 or more."""
    high: float = 0.5
    """One step down is taken when more requests than this wait for each one that runs.
    Limits: above `low`."""
    low: float = 0.1
    """One step up is taken when fewer than this do. Limits: 0 or more, below `high`."""
    dwell_s: float = 2.0
    """Seconds that lie between two steps at least. Limits: 0 or more."""

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ConfigError(f"steps is {self.steps}: it must be 2 or more")
        if not 0 <= self.low < self.high:
            raise ConfigError(f"low is {self.low} and high {self.high}: low must lie below high")
        if self.dwell_s < 0:
            raise ConfigError(f"dwell_s is {self.dwell_s}: it must be 0 or more seconds")


@dataclass(frozen=True, kw_only=True)
class QueueConfig:
    """What may wait: more than that is refused at once, so that clients can go elsewhere."""

    max_requests: int = 256
    """Requests that may wait. Limits: 0 or more."""
    max_tokens: int = 262_144
    """Tokens of prompts that may wait; alone, any prompt may. Limits: 0 or more."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ConfigError(f"{name} is {value}: it must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How requests share one model."""

    max_batch: int = 32
    """Answers written at once. Limits: 1 or more."""
    max_batch_tokens: int = 512
    """Tokens that go through the model in one step. Limits: `max_batch` or more."""
    max_stall: float = 1.8
    """How much longer a step may take because of others' prompts: at 2, a stream's tokens come at
    least half as fast while a long prompt arrives; where more wait for their first token than
    are being answered, prompts get more in proportion.
    Limits: above 1."""
    burst_s: float = 0.01
    """Seconds for which a small model may go on before it tells of its tokens; 0 tells of each by
    itself.
    Limits: 0 to 0.1."""
    max_length: int | None = None
    """Tokens of prompt and answer together; none: the model's context.
    Limits: 1 or more, at most the model's context."""
    is_batch_invariant: bool = True
    """Give a request the same bits whatever runs beside it; without it long prompts are read faster
    on a CPU."""
    dtype: EngineDtype = "auto"
    """How weights are held: auto is the checkpoint's own where there are kernels for it, else what
    torch does faster."""
    num_threads: int | None = None
    """Threads of the arithmetic; none takes all cores. Limits: 1 or more."""
    watchdog_s: float | None = 300.0
    """Seconds without a sign of the engine after which it counts as stuck: its requests fail, and
    it is started again. It has to be longer than the longest step, reading `max_batch_tokens` of a
    prompt. Without it a stuck engine stays as it is.
    Limits: 1 or more."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    draft: DraftConfig = field(default_factory=DraftConfig)
    pressure: PressureConfig = field(default_factory=PressureConfig)
    queue: QueueConfig = field(default_factory=QueueConfig)

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise ConfigError(f"max_batch is {self.max_batch}: it must be 1 or more")
        if self.max_batch_tokens < self.max_batch:
            raise ConfigError(
                f"max_batch_tokens is {self.max_batch_tokens}: each of max_batch {self.max_batch}"
                " sequences needs one: raise it"
            )
        if self.max_stall <= 1:
            raise ConfigError(f"max_stall is {self.max_stall}: it must be over 1")
        if not 0 <= self.burst_s <= _MOST_BURST_S:
            raise ConfigError(
                f"burst_s is {self.burst_s}: it must be from 0 to {_MOST_BURST_S} seconds"
            )
        for name in ("max_length", "num_threads", "watchdog_s"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}: it must be 1 or more, or none")
