"""How one token is picked from a model's logits: checked once, here, and trusted afterwards.

Knows no tensors. Next: chat.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from moestro.errors import ConfigError

_MOST_BIASES = 1024


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Temperature 0 takes the likeliest token; the rest are the field's usual knobs.

    `top_k` 0 and `top_p` 1 and `min_p` 0 are off. `seed` None draws a fresh one per request. Logits
    are penalized and biased first, then tempered, then cut by top-k, top-p and min-p.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0, 100)
        _check("top_p", self.top_p, 0, 1, excludes_low=True)
        _check("top_k", self.top_k, 0, math.inf)
        _check("min_p", self.min_p, 0, 1)
        _check("repetition_penalty", self.repetition_penalty, 0, 100, excludes_low=True)
        _check("presence_penalty", self.presence_penalty, -2, 2)
        _check("frequency_penalty", self.frequency_penalty, -2, 2)
        _check("min_tokens", self.min_tokens, 0, math.inf)
        if len(self.logit_bias) > _MOST_BIASES:
            raise ConfigError(
                f"logit_bias has {len(self.logit_bias)} entries, limit {_MOST_BIASES}: send fewer",
                param="logit_bias",
            )
        for token_id, bias in self.logit_bias.items():
            _check(f"logit_bias of token {token_id}", bias, -100, 100)
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}: it must fit 64 bits", param="seed")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken, without any draw."""
        return self.temperature == 0

    @property
    def has_cuts(self) -> bool:
        """Whether top-k, top-p or min-p leave some tokens out of a draw."""
        return (self.top_k, self.top_p, self.min_p) != (0, 1, 0)

    @property
    def has_penalties(self) -> bool:
        """Whether tokens that went before change the logits."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


@dataclass(frozen=True, kw_only=True)
class SamplingWish:
    """What a request says of its sampling; what is None is left to the model that it goes to."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None

    def __post_init__(self) -> None:
        self.fill(Sampling())

    def fill(self, own: Sampling) -> Sampling:
        """Return the whole, with the model's own in place of what was left out."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        return replace(own, **given)


def _check(name: str, value: float, low: float, high: float, *, excludes_low: bool = False) -> None:
    is_inside = (low < value if excludes_low else low <= value) and value <= high
    # NaN fails every comparison; an infinite value is caught where there is no upper bound.
    if not is_inside or math.isinf(value):
        border = f"over {low:g}" if excludes_low else f"from {low:g}"
        upto = "" if math.isinf(high) else f" up to {high:g}"
        raise ConfigError(
            f"{name} is {value}: it must be a number {border}{upto}", param=name.partition(" ")[0]
        )
