"""One answer's grammar while tokens are picked: guess first, rule out where the guess is wrong.

Asking for one token is cheaper than asking for all, and what a good model wants mostly follows. A
greedy token that is allowed is the best of those allowed, and so is the one with the greatest sum
of logit and noise. Where tokens are cut off before a draw, that one is right if it is so likely
that no cut can have left it out. Knows no logits. Next: sampler.py, text/grammar.py.
"""

import math
from typing import Protocol

from moestro.api.sampling import Sampling
from moestro.errors import DataError

# Masks in place of guesses behind so many wrong guesses in a row. One says little: a token in ten
# may be ruled out within a string; some say that the model does not know what is wanted of it.
_MASKS_BETWEEN = (0, 0, 1, 3, 7)
# As many tokens are guessed at once as guesses were right of late; a wrong one leaves this part.
_TRUST_LOST = 4
# Shares are compared with room for what rounding does to them.
_SLACK = 1e-3


class Rules(Protocol):
    """What may come next, like text/grammar.py's Grammar; may raise DataError."""

    def offer(self, token_id: int) -> bool:
        """Take the next token if it may come; return whether."""
        ...

    def mask(self) -> bytes:
        """Whether each token of the vocabulary may: bits, as ops/picking.py has them."""
        ...


class Guide:
    """Asks the rules of one answer; a `fault` of theirs ends its request, and no other.

    `has_taken` says that the token just picked was a guess, which the rules have taken already.
    """

    def __init__(self, rules: Rules) -> None:
        self.fault: DataError | None = None
        self.has_taken = False
        self._rules = rules
        self._num_refused = 0
        self._num_masks_due = 0
        self._trust = 0

    def num_guesses(self, sampling: Sampling) -> int:
        """Return how many tokens in a row are worth guessing before anything is asked."""
        return self._trust if self.fault is None and self.can_guess(sampling) else 0

    def can_guess(self, sampling: Sampling) -> bool:
        """Whether to pick the next token from all, and only then to ask for it."""
        is_provable = not is_cut(sampling) or sampling.temperature <= 1
        return is_provable and not self._num_masks_due

    def offer(self, token_id: int, sampling: Sampling, logprob: float | None) -> bool:
        """Give the rules a guess, which they take if it may come next; True where they fail.

        With a sampling that `is_cut` one of too low a log-probability is refused, as no one knows.
        """
        try:
            is_kept = not is_cut(sampling) or survives(sampling, logprob)
            is_taken = is_kept and self._rules.offer(token_id)
        except DataError as error:
            self.fault = error
            return True
        self.has_taken = is_taken
        if is_taken:
            self._trust += 1
            self._num_refused = self._num_masks_due = 0
            return True
        self.doubt()
        self._num_refused += 1
        # The mask that a wrong guess takes is due as well.
        between = _MASKS_BETWEEN[min(self._num_refused, len(_MASKS_BETWEEN) - 1)]
        self._num_masks_due = 1 + between
        return False

    def doubt(self) -> None:
        """Note that a guess was wrong."""
        self._trust //= _TRUST_LOST

    def mask(self) -> bytes | None:
        """Return which tokens may come next; None where the rules fail."""
        try:
            bits = self._rules.mask()
        except DataError as error:
            self.fault = error
            return None
        self._num_masks_due = max(self._num_masks_due - 1, 0)
        self.has_taken = False
        return bits


def is_cut(sampling: Sampling) -> bool:
    """Whether tokens are left out of a draw for being unlikely beside others that may come."""
    return not sampling.is_greedy and sampling.has_cuts


def survives(sampling: Sampling, logprob: float | None) -> bool:
    """Whether the cuts keep a token of this log-probability, whichever others are ruled out.

    Of its share w at a temperature of 1 follows the least that it can have at a lower one: the
    others' shares, raised to 1 / temperature, sum up to most where they are one token's. All
    together, those before it have at most 1 - w, and each has w or more.
    """
    share = 0.0 if logprob is None else math.exp(logprob)
    if not share:
        return False
    if share > 0.5 + _SLACK:
        # None is likelier.
        return True
    odds = max((1 - share) / share, 1.0)
    if 0 < sampling.top_k <= (1 + _SLACK) * odds:
        return False
    # To a power below 0: one above overflows at the lowest temperatures.
    tempered = odds ** (-1 / sampling.temperature)
    return tempered / (1 + tempered) > max(1 - sampling.top_p, sampling.min_p) + _SLACK
