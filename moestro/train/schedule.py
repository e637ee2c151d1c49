"""Learning rate by step: pure arithmetic. Next: optimizer.py."""

import math

from moestro.train.config import ScheduleConfig


def learning_rate_scale(step: int, num_steps: int, config: ScheduleConfig) -> float:
    """Return the factor on every learning rate for the update that ends `step`, counted from 0."""
    warmup = max(1, round(config.warmup_share * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    if config.kind == "cosine":
        progress = (step - warmup) / max(1, num_steps - warmup)
        return _between(config.final_ratio, 0.5 * (1 + math.cos(math.pi * progress)))
    decay = max(1, round(config.decay_share * num_steps))
    return _between(config.final_ratio, min(1.0, (num_steps - step) / decay))


def _between(final: float, share: float) -> float:
    return final + (1 - final) * share
