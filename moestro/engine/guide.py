"""One answer's grammar while tokens are picked: guess first, rule out where the guess is wrong.

Asking for one token is cheaper than asking for all, and what a good model wants mostly follows. A
greedy token that is allowed is the best of those allowed, and so is the one with the greatest sum
of logit and noise: where no token is cut off before a draw, both can be guessed. Knows no logits.
Next: sampler.py, text/grammar.py.
"""

from typing import Protocol

from moestro.api.sampling import Sampling
from moestro.errors import DataError

# Masks in place of guesses behind so many wrong guesses in a row. One says little: a token in ten
# may be ruled out within a string; some say that the model does not know what is wanted of it.
_MASKS_BETWEEN = (0, 0, 1, 3, 7)


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

    def can_guess(self, sampling: Sampling) -> bool:
        """Whether to pick the next token from all, and only then to ask for it."""
        is_cut = not sampling.is_greedy and sampling.has_cuts
        return not is_cut and not self._num_masks_due

    def offer(self, token_id: int) -> bool:
        """Give the rules a guess, which they take if it may come next; True where they fail."""
        try:
            is_taken = self._rules.offer(token_id)
        except DataError as error:
            self.fault = error
            return True
        self._num_refused = 0 if is_taken else self._num_refused + 1
        # The mask that a wrong guess takes is due as well.
        between = _MASKS_BETWEEN[min(self._num_refused, len(_MASKS_BETWEEN) - 1)]
        self._num_masks_due = 0 if is_taken else 1 + between
        self.has_taken = is_taken
        return is_taken

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
