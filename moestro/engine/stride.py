"""How many tokens each answer may go on by before anyone hears of them.

A call of a small model takes less time than telling of its tokens. Knows counts and seconds, not
requests; reads no clock. Next: planner.py.
"""

from collections import deque
from statistics import median

# Further steps would save hardly more, and cost keys of noise that may not be needed.
_MOST_STEPS = 64
# The median of a few shrugs off a page fault or a busy neighbor.
_NUM_SAMPLES = 5


class Stride:
    """Bounds a burst by the seconds that it may take, learned from the steps that were run."""

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        # Seconds a step, by the number of answers.
        self._steps_s: dict[int, deque[float]] = {}

    def steps(self, num_answers: int, most: int) -> int:
        """Return how many steps a burst of so many answers has, up to `most`: 1 if it is none."""
        samples = self._steps_s.get(num_answers)
        if most <= 1 or not samples:
            return 1
        # Compared first: a step of no time must not divide.
        step_s = median(samples)
        most = min(most, _MOST_STEPS)
        return most if step_s * most <= self._most_s else max(int(self._most_s / step_s), 1)

    def observe(self, num_answers: int, num_steps: int, seconds: float) -> None:
        """Learn from a burst, or a step, of answers alone."""
        samples = self._steps_s.setdefault(num_answers, deque(maxlen=_NUM_SAMPLES))
        samples.append(seconds / num_steps)
