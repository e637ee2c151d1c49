"""Batches of windows over the training ids; a batch is a function of its step alone. Next: train.

Legend: B windows of a batch, S tokens of a window, N windows of an epoch.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moestro.errors import ConfigError, DataError


class Loader:
    """Windows in a new order every epoch, from a new first token; nothing to save but the step.

    The ids are read as a ring, so that every phase has the same number of windows. A window's last
    `num_extra` ids are targets only, and are the first inputs of the next.
    """

    def __init__(
        self,
        tokens: NDArray[np.unsignedinteger[Any]],
        *,
        batch_size: int,
        seq_len: int,
        num_extra: int = 1,
        seed: int = 0,
    ) -> None:
        """Take ids, mapped or in memory; `num_extra` is 1 plus the number of MTP modules."""
        if batch_size < 1 or seq_len < 1 or num_extra < 0:
            raise ConfigError(
                f"batch_size is {batch_size}, seq_len {seq_len}, num_extra {num_extra}:"
                " the first two must be 1 or more, the last 0 or more"
            )
        if len(tokens) < seq_len + num_extra:
            raise DataError(
                f"the training text has {len(tokens)} tokens, but one window takes"
                f" {seq_len + num_extra}: give more text or lower the sequence length"
            )
        self.num_windows = len(tokens) // seq_len
        self._tokens = tokens
        self._batch_size, self._seq_len, self._num_extra = batch_size, seq_len, num_extra
        self._seed = seed
        self._epoch = -1
        self._starts_N = np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> NDArray[np.int64]:
        """Return the ids of step `step`, counted from 0: `(batch_size, seq_len + num_extra)`."""
        first = step * self._batch_size
        starts_B = [self._start(index) for index in range(first, first + self._batch_size)]
        offsets_S = np.arange(self._seq_len + self._num_extra)
        places_BS = np.asarray(starts_B)[:, None] + offsets_S
        return self._tokens[places_BS % len(self._tokens)].astype(np.int64)

    def epoch(self, step: int) -> float:
        """Return how often the text has been seen before step `step`."""
        return step * self._batch_size / self.num_windows

    def _start(self, index: int) -> int:
        epoch, place = divmod(index, self.num_windows)
        if epoch != self._epoch:
            random = np.random.default_rng([self._seed, epoch])
            phase = random.integers(len(self._tokens))
            self._starts_N = phase + random.permutation(self.num_windows) * self._seq_len
            self._epoch = epoch
        return int(self._starts_N[place])
