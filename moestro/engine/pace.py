"""How many tokens of prompts may join a step without making the answers under way stall.

Learns what steps cost from steps that were run; reads no clock. Next: scheduler.py, payoff.py.
"""

from collections import deque
from statistics import median
from typing import TypeVar

T = TypeVar("T")

_GRAIN = 16
# The median of a few shrugs off a page fault or a busy neighbor and forgets an old load quickly.
_NUM_SAMPLES = 5
# After so many steps with prompts one goes without, to see what it costs now.
_MOST_STALE_STEPS = 32


class Pace:
    """The stall governor: a step takes at most `max_stall` times as long with prompts as without.

    Where more wait for their first token than are being answered, the time that prompts may add
    grows in that proportion: else a few answers would run at full speed while a queue stands still.

    Three things are learned: the base, which is a step's time without prompts; the price of a
    prompt token; and the toll, which is what a step pays for prompts beyond price times tokens,
    as for experts that the decodes alone would not have visited.
    """

    def __init__(self, max_stall: float, max_tokens: int) -> None:
        self._max_stall = max_stall
        self._max_tokens = max_tokens
        # By the number of decode tokens: seconds; and prompt tokens with the seconds they added.
        self._bases_s: dict[int, deque[float]] = {}
        self._extras: dict[int, deque[tuple[int, float]]] = {}
        self._prices_s: deque[float] = deque(maxlen=_NUM_SAMPLES)
        self._base_age = 0

    def prefill_tokens(self, num_decode_tokens: int, num_prompts: int = 1) -> int:
        """Return how many prompt tokens may join a step: 16 at least, in multiples of 16.

        `num_prompts` is how many sequences have no first token yet, wherever they wait.
        Two exceptions: all that is allowed where that is less, or where there are no decodes; and
        none in a first step and in one of 32 later ones, from which the base is learned.
        """
        if not num_decode_tokens:
            return self._max_tokens
        if not self._bases_s or self._base_age >= _MOST_STALE_STEPS:
            return 0
        stall = (self._max_stall - 1) * max(num_prompts / num_decode_tokens, 1.0)
        num_tokens = self._affordable_tokens(num_decode_tokens, stall) if self._extras else _GRAIN
        return min(max(num_tokens // _GRAIN * _GRAIN, _GRAIN), self._max_tokens)

    def observe(self, num_decode_tokens: int, num_prefill_tokens: int, seconds: float) -> None:
        """Learn from a step that was run."""
        if not num_decode_tokens:
            # In shorter prompts the step itself costs more than the tokens.
            if num_prefill_tokens >= _GRAIN:
                self._prices_s.append(seconds / num_prefill_tokens)
        elif not num_prefill_tokens:
            self._base_age = 0
            _append(self._bases_s, num_decode_tokens, seconds)
        else:
            self._base_age += 1
            if self._bases_s:
                extra_s = max(seconds - self._base_s(num_decode_tokens), 0.0)
                _append(self._extras, num_decode_tokens, (num_prefill_tokens, extra_s))

    def _affordable_tokens(self, num_decode_tokens: int, stall: float) -> int:
        nearest = min(self._extras, key=lambda known: abs(known - num_decode_tokens))
        samples = self._extras[nearest]
        price_s = self._price_s(samples)
        toll_s = median(extra_s - price_s * num_tokens for num_tokens, extra_s in samples)
        left_s = stall * self._base_s(num_decode_tokens) - toll_s
        # Compared first: a price of 0 must not divide.
        if left_s >= price_s * self._max_tokens:
            return self._max_tokens
        return int(left_s / price_s)

    def _price_s(self, samples: deque[tuple[int, float]]) -> float:
        # The biggest prompts come closest to the price of one token more.
        if self._prices_s:
            return min(self._prices_s)
        return median(extra_s / num_tokens for num_tokens, extra_s in samples)

    def _base_s(self, num_decode_tokens: int) -> float:
        """Return a step's seconds without prompts: on a line between sizes that were seen."""
        below = max((known for known in self._bases_s if known <= num_decode_tokens), default=0)
        above = min((known for known in self._bases_s if known >= num_decode_tokens), default=below)
        low_s = median(self._bases_s[below]) if below else 0.0
        share = (num_decode_tokens - below) / (above - below) if above > below else 0.0
        return low_s + share * (median(self._bases_s[above]) - low_s)


def _append(table: dict[int, deque[T]], key: int, sample: T) -> None:
    table.setdefault(key, deque(maxlen=_NUM_SAMPLES)).append(sample)
