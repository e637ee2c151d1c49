"""The prompts that a policy learned from, as fingerprints: what it does on those proves nothing.

Knows texts only as they come in; none is kept. Next: build.py, calibrate.py, report.py.

Shapes: L fingerprints kept.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Prints = NDArray[np.uint64]

# Of more prompts the smallest fingerprints are kept, by which the share of the others is estimated.
MOST = 50_000


@dataclass(frozen=True)
class SeenPrompts:
    """Fingerprints of prompts, each once, the smallest first; none where they are not known."""

    prints_L: Prints = field(default_factory=lambda: np.zeros(0, np.uint64))

    def with_more(self, prompts: Sequence[str]) -> "SeenPrompts":
        """Return these and the fingerprints of more prompts."""
        return SeenPrompts(np.union1d(self.prints_L, _fingerprints(prompts))[:MOST])

    def count(self, prompts: Sequence[str]) -> int:
        """Return how many of some prompts are among these: an estimate if not all were kept."""
        prints_N = _fingerprints(prompts)
        num_known = int(np.isin(prints_N, self.prints_L).sum())
        if len(self.prints_L) < MOST:
            return num_known
        num_comparable = int((prints_N <= self.prints_L[-1]).sum())
        return round(num_known * len(prints_N) / max(1, num_comparable))


def _fingerprints(prompts: Sequence[str]) -> Prints:
    hashes = [
        hashlib.blake2b(prompt.strip().encode(errors="replace"), digest_size=8).digest()
        for prompt in prompts
    ]
    return np.frombuffer(b"".join(hashes), dtype="<u8").astype(np.uint64)
