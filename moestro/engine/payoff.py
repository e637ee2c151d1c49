"""Whether drafting makes answers faster, by what it did of late.

Knows counts and seconds, not drafts; reads no clock. Next: draft.py.
"""

from dataclasses import dataclass, field

from moestro.engine.config import DraftMode

# Of each round of steps the last few go to the mode that is not preferred: 3.75 %.
_ROUND = 320
_PROBE = 12
# A step counts half as much when 35 others have followed it.
_DECAY = 0.98
# Where plain steps are so many times as fast, drafts are not worth a first try elsewhere.
_LOST = 1.3
# A step that took longer than so many times the mean was held up by something else.
_MOST_OVER_MEAN = 3.0


class Payoff:
    """Compares tokens per second with and without drafts, by the number of sequences.

    In mode "auto" both are tried first, 12 steps each; then the faster one is used, and the other
    gets 12 of every 320 steps, in case things have changed. Where drafts have lost by far with one
    number of sequences, they get their first try with others only then. "always" and "off" need no
    proof.
    """

    def __init__(self, mode: DraftMode) -> None:
        self._mode = mode
        self._buckets: dict[int, _Bucket] = {}

    def is_drafting(self, num_sequences: int) -> bool:
        """Decide for the next step of so many sequences."""
        if self._mode != "auto":
            return self._mode == "always"
        return self._bucket(num_sequences).is_drafting

    def observe(
        self, num_sequences: int, is_drafting: bool, num_tokens: float, seconds: float
    ) -> None:
        """Learn from a step without prompts that made `num_tokens` tokens for all together.

        Of a burst both are the mean of its steps, so that it counts like a step of its own.
        `is_drafting` is what was decided for the step, whether or not there were drafts to verify.
        """
        self._bucket(num_sequences).add(is_drafting, num_tokens, seconds)

    def _bucket(self, num_sequences: int) -> "_Bucket":
        size = num_sequences.bit_length()
        if size not in self._buckets:
            is_unlikely = any(bucket.is_lost for bucket in self._buckets.values())
            self._buckets[size] = _Bucket(is_unlikely)
        return self._buckets[size]


@dataclass
class _Speed:
    """Tokens over seconds, both fading, and the weight of the steps that they sum up."""

    num_steps: int = 0
    weight: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0

    def add(self, num_tokens: float, seconds: float) -> None:
        if self.num_steps >= _PROBE // 2:
            seconds = min(seconds, _MOST_OVER_MEAN * self.seconds / self.weight)
        self.num_steps += 1
        self.weight = _DECAY * self.weight + 1
        self.tokens = _DECAY * self.tokens + num_tokens
        self.seconds = _DECAY * self.seconds + seconds

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


@dataclass
class _Bucket:
    """What is known of one range of batch sizes: 1, 2 to 3, 4 to 7 and so on."""

    is_unlikely: bool
    drafting: _Speed = field(default_factory=_Speed)
    plain: _Speed = field(default_factory=_Speed)
    num_steps: int = 0

    @property
    def is_drafting(self) -> bool:
        is_probe = self.num_steps % _ROUND >= _ROUND - _PROBE
        if self.drafting.num_steps < _PROBE:
            return is_probe or not self.is_unlikely
        if self.plain.num_steps < _PROBE:
            return False
        return (self.drafting.tokens_per_s >= self.plain.tokens_per_s) != is_probe

    @property
    def is_lost(self) -> bool:
        """Whether drafts were tried, and made everything much slower."""
        return self._is_tried and self.plain.tokens_per_s >= _LOST * self.drafting.tokens_per_s

    def add(self, is_drafting: bool, num_tokens: float, seconds: float) -> None:
        (self.drafting if is_drafting else self.plain).add(num_tokens, seconds)
        self.num_steps += self.is_unlikely or self._is_tried

    @property
    def _is_tried(self) -> bool:
        return min(self.drafting.num_steps, self.plain.num_steps) >= _PROBE
