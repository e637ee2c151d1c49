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
    """The paged cache of latents, shared by all requests.

    `num_tokens` None takes what `max_batch` requests of full length need, up to a quarter of the
    free memory. `has_prefix_reuse` lets requests share the blocks of an equal beginning.
    """

    block_size: int = 64
    num_tokens: int | None = None
    has_prefix_reuse: bool = True

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
    """Speculative decoding with the checkpoint's MTP modules, one draft for each of them.

    "auto" drafts only while that makes answers faster.
    """

    mode: DraftMode = "auto"


@dataclass(frozen=True, kw_only=True)
class PressureConfig:
    """How the budget of requests with `experts` "auto" follows the queue.

    With `steps` declared budgets from the model's most to its fewest, one step down is taken when
    more than `high` requests wait for each one that runs, and one step up when fewer than `low` do;
    at least `dwell_s` seconds lie between two changes.
    """

    steps: int = 5
    high: float = 0.5
    low: float = 0.1
    dwell_s: float = 2.0

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
    max_tokens: int = 262_144


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How requests share one model.

    `max_batch` sequences run at once, `max_batch_tokens` tokens go through the model in one step.
    `max_stall` bounds how much longer a step may take because of others' prompts: at 2, a stream's
    tokens come at least half as fast while a long prompt arrives; where more wait for their first
    token than are being answered, prompts get more in proportion. A small model makes several
    tokens of each answer before it tells of them, for up to `burst_s` seconds; 0 tells of each by
    itself. `is_batch_invariant` gives a request the same bits whatever runs beside it; without it
    long prompts are read faster on a CPU. `num_threads` None takes all cores.
    """

    max_batch: int = 32
    max_batch_tokens: int = 512
    max_stall: float = 1.8
    burst_s: float = 0.01
    max_length: int | None = None
    is_batch_invariant: bool = True
    dtype: EngineDtype = "auto"
    num_threads: int | None = None
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
