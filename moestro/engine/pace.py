"""How many tokens of prompts may join a step without making the answers under way stall.

Learns what steps cost from steps that were run; reads no clock. Next: planner.py, payoff.py.
"""

from collections import deque
from statistics import median

# Less at a time would make prompts last, and costs hardly less: any prompt has most of its price.
_LEAST = 4
# The median of a few shrugs off a page fault or a busy neighbor and forgets an old load quickly.
_NUM_SAMPLES = 5
# After so many steps with prompts one goes without, to see what it costs now.
_MOST_STALE_STEPS = 32


class Pace:
    """The stall governor: a step takes at most `max_stall` times as long with prompts as without.

    Where more wait for their first token than are being answered, the time that prompts may add
    grows in that proportion: else a few answers would run at full speed while a queue stands still.

    Two things are learned: the base, which is a step's time without prompts, and the price of a
    prompt token at the sizes of late. It holds a share of what any prompt costs, as for experts
    that the decodes alone would not have visited, so it falls as sizes grow: what the last price
    allows is never too much for the stall, and closer to it each time.
    """

    def __init__(self, max_stall: float, max_tokens: int) -> None:
        self._max_stall = max_stall
        self._max_tokens = max_tokens
        # Seconds by the number of decode tokens.
        self._bases_s: dict[int, deque[float]] = {}
        self._prices_s: dict[int, deque[float]] = {}
        self._base_age = 0

    def prefill_tokens(self, num_decode_tokens: int, num_prompts: int = 1) -> int:
        """Return how many prompt tokens may join a step: 4 at least, so that they get on.

        `num_prompts` is how many sequences have no first token yet, wherever they wait.
        Two exceptions: all that is allowed where that is less, or where there are no decodes; and
        none in a first step and in one of 32 later ones, from which the base is learned.
        """
        if not num_decode_tokens:
            return self._max_tokens
        if not self._bases_s or self._base_age >= _MOST_STALE_STEPS:
            return 0
        stall = (self._max_stall - 1) * max(num_prompts / num_decode_tokens, 1.0)
        num_tokens = self._affordable_tokens(num_decode_tokens, stall) if self._prices_s else _LEAST
        return min(max(num_tokens, _LEAST), self._max_tokens)

    def observe(self, num_decode_tokens: int, num_prefill_tokens: int, seconds: float) -> None:
        """Learn from a step that was run, and from all that had to be run because of it."""
        if not num_decode_tokens:
            return
        if not num_prefill_tokens:
            self._base_age = 0
            _append(self._bases_s, num_decode_tokens, seconds)
            return
        self._base_age += 1
        if self._bases_s:
            extra_s = max(seconds - self._base_s(num_decode_tokens), 0.0)
            _append(self._prices_s, num_decode_tokens, extra_s / num_prefill_tokens)

    def _affordable_tokens(self, num_decode_tokens: int, stall: float) -> int:
        nearest = min(self._prices_s, key=lambda known: abs(known - num_decode_tokens))
        price_s = median(self._prices_s[nearest])
        left_s = stall * self._base_s(num_decode_tokens)
        # Compared first: a price of 0 must not divide.
        if left_s >= price_s * self._max_tokens:
            return self._max_tokens
        return int(left_s / price_s)

    def _base_s(self, num_decode_tokens: int) -> float:
        """Return a step's seconds without prompts: on a line between sizes that were seen."""
        below = max((known for known in self._bases_s if known <= num_decode_tokens), default=0)
        above = min((known for known in self._bases_s if known >= num_decode_tokens), default=below)
        low_s = median(self._bases_s[below]) if below else 0.0
        share = (num_decode_tokens - below) / (above - below) if above > below else 0.0
        return low_s + share * (median(self._bases_s[above]) - low_s)


def _append(table: dict[int, deque[float]], key: int, sample: float) -> None:
    table.setdefault(key, deque(maxlen=_NUM_SAMPLES)).append(sample)
