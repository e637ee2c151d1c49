"""What is told of an engine at one moment: plain numbers, no torch.

Next: meter.py for who counts; api/stats.py for what a server makes of it.
"""

from dataclasses import dataclass, field

from moestro.api.stats import ExpertStats


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """An engine at one moment; the fields mean what those of api/stats.py mean."""

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
    experts: ExpertStats = field(default_factory=ExpertStats)
