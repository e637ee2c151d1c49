"""What a backend counts, for metrics and pages: plain numbers, taken at one moment.

Counters grow from the backend's start and survive a restart of its engine. Next: backend.py.

Shapes: L MoE layers, E experts.
"""

from dataclasses import dataclass, field
from typing import Literal

# "unreachable": of a model of a fleet, no server answers.
State = Literal["loading", "ready", "restarting", "draining", "stopped", "unreachable"]


@dataclass(frozen=True, kw_only=True)
class ExpertStats:
    """What the gates did: totals by layer and expert, and the same over the recent window.

    `violation_L` is max over experts of load / mean load, minus 1, over the window; `starved_L`
    counts experts with under a tenth of their share in it. `histogram` counts the window's tokens
    by layer and number of experts taken; its first column is for no expert.
    """

    tokens_LE: tuple[tuple[int, ...], ...] = ()
    window_LE: tuple[tuple[int, ...], ...] = ()
    violation_L: tuple[float, ...] = ()
    starved_L: tuple[int, ...] = ()
    histogram: tuple[tuple[int, ...], ...] = ()
    mean_experts: float | None = None


@dataclass(frozen=True, kw_only=True)
class Stats:
    """One model's engine at one moment; rates are over its recent window.

    `experts_level` is the budget that requests with `experts` "auto" are granted now;
    `engine_hangs` counts those of `engine_restarts` that came because the engine was stuck.
    """

    model: str
    state: State
    progress: float = 1.0
    num_running: int = 0
    num_waiting: int = 0
    num_waiting_tokens: int = 0
    cache_usage: float = 0.0
    prompt_tokens_per_s: float = 0.0
    generation_tokens_per_s: float = 0.0
    experts_level: float | None = None
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    num_drafts: int = 0
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0
    is_drafting: bool = False
    engine_restarts: int = 0
    engine_hangs: int = 0
    experts: ExpertStats = field(default_factory=ExpertStats)
