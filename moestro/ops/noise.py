"""Gumbel noise that is looked up, not drawn: a hash of seed, position and token id.

Having no state, it is the same for any subset of the tokens, in any order, for a draft and for its
verification. Knows no sampling settings. Next: picking.py.

Shapes: K tokens.
"""

import math
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

# SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_WORD = 2**64 - 1
_REMEMBERED_SEEDS = 1024

# 52 bits and a half, so that no uniform number rounds to 0 or 1 and all noise is finite.
_BITS = 52
_LEAST_UNIFORM = 2.0 ** -(_BITS + 1)
LEAST = -math.log(-math.log(_LEAST_UNIFORM))
MOST = -math.log(-math.log1p(-_LEAST_UNIFORM))
# Far above what float32 rounds off sums of this size.
_SLACK = 1e-3


def winner(
    logits_K: NDArray[np.float32], ids_K: NDArray[np.int64], seed: int, position: int
) -> int:
    """Return the index of the greatest sum of finite logit and `gumbel` noise."""
    uniform_K = uniform(ids_K, seed, position)
    # The noise of u lies below -log(u), which float32 gives for less; few come near the greatest.
    bound_K = logits_K - np.log(uniform_K.astype(np.float32))
    first = int(bound_K.argmax())
    reached = logits_K[first] + _to_gumbel(uniform_K[first : first + 1])[0]
    near = np.flatnonzero(bound_K >= reached - _SLACK)
    return int(near[(logits_K[near] + _to_gumbel(uniform_K[near])).argmax()])


def gumbel(ids_K: NDArray[np.int64], seed: int, position: int) -> NDArray[np.float64]:
    """Return the tokens' noise at a position, from LEAST to MOST."""
    return _to_gumbel(uniform(ids_K, seed, position))


def uniform(ids_K: NDArray[np.int64], seed: int, position: int) -> NDArray[np.float64]:
    """Return a number between 0 and 1, both excluded, for each token id, 0 or more."""
    words_K = ids_K.astype(np.uint64)
    words_K *= _GAMMA
    words_K += _word(noise_stream(seed), position)
    _mix(words_K)
    words_K >>= np.uint64(64 - _BITS)
    uniform_K = words_K.astype(np.float64)
    uniform_K += 0.5
    uniform_K *= 2.0**-_BITS
    return uniform_K


def _to_gumbel(uniform_K: NDArray[np.float64]) -> NDArray[np.float64]:
    # Small numbers become great noise: they are resolved finely, those near 1 are not.
    gumbel_K: NDArray[np.float64] = -np.log(-np.log1p(-uniform_K))
    return gumbel_K


@lru_cache(_REMEMBERED_SEEDS)
def noise_stream(seed: int) -> int:
    """Return the word that tells the noise of one answer from all others'."""
    digest = blake2b((seed & _WORD).to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _word(stream: int, place: int) -> np.uint64:
    """Return a place's word of a stream: what tells the noise of one position from another's."""
    words = np.array([(stream + place * int(_GAMMA)) & _WORD], dtype=np.uint64)
    _mix(words)
    return words[0]


def _mix(words: NDArray[np.uint64]) -> None:
    """Scramble each word in place, one to one."""
    words ^= words >> np.uint64(30)
    words *= _MIX_1
    words ^= words >> np.uint64(27)
    words *= _MIX_2
    words ^= words >> np.uint64(31)
