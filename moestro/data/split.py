"""Which documents are never trained on, decided by each document's own text.

Knows texts, not tokens. Next: fim.py, shards.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moestro.data.corpus import Document
from moestro.errors import DataError

_BLOCK_BYTES = 4_000_000
_PROBE_BYTES = 32
_NUM_PROBES = 32
# A document is a near copy of training text where more of its probes stand there.
_MOST_SEEN = 0.75
_PARAGRAPH = 1000
_TOP_BITS = np.uint64(44)
# Any odd numbers mix; they only choose which blocks are searched exactly.
_MIX = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Both sides, and the held-out documents dropped because training text repeats them."""

    training: tuple[Document, ...]
    held_out: tuple[Document, ...]
    dropped: tuple[Document, ...] = ()


def split(documents: Sequence[Document], held_out: float, seed: int) -> Split:
    """Hold out about a share of the documents, so that none changes sides when others come.

    Parts of one document stay on one side. What training text repeats, whole or for the most part,
    is on neither: it would be predicted from memory. Fewer documents than `1 / held_out` cannot
    meet the share: then the tail of the longest one is held out.
    """
    chosen = [document.draw_whole("split", seed) < held_out for document in documents]
    num_whole = len({document.whole or document.text for document in documents})
    if num_whole >= 1 / held_out and any(chosen) and not all(chosen):
        training = [
            document for document, is_held in zip(documents, chosen, strict=True) if not is_held
        ]
        candidates = [
            document for document, is_held in zip(documents, chosen, strict=True) if is_held
        ]
        repeated = _repeated(candidates, training)
        kept = [document for index, document in enumerate(candidates) if index not in repeated]
        if kept:
            return Split(
                training=tuple(training),
                held_out=tuple(kept),
                dropped=tuple(candidates[index] for index in sorted(repeated)),
            )
    return _cut_tail(documents, held_out)


def _cut_tail(documents: Sequence[Document], held_out: float) -> Split:
    longest = max(documents, key=lambda document: len(document.text), default=None)
    total = sum(len(document.text) for document in documents)
    if longest is not None:
        size = len(longest.text)
        wanted = min(max(round(total * held_out), 1), size // 2)
        # Whole lines are worth as much again, or a paragraph, but not most of a long text.
        first = max(0, size - wanted - max(wanted, _PARAGRAPH))
        cut = longest.text.rfind("\n", first, size - wanted) + 1 or size - wanted
        head, tail = longest.text[:cut], longest.text[cut:]
        others = [document for document in documents if document is not longest]
        trained = [*others, replace(longest, text=head)]
        part = replace(longest, text=tail, name=f"{longest.name}#tail")
        if head.strip() and tail.strip() and not _contained([part], trained):
            return Split(training=tuple(trained), held_out=(part,))
    raise DataError(
        f"{len(documents)} documents with {total} characters in all: too little to hold any out:"
        " give more text in data.paths"
    )


def _contained(candidates: Sequence[Document], training: Sequence[Document]) -> set[int]:
    """Find the candidates whose whole text stands inside a training document."""
    return _search(candidates, training, num_probes=1)[0]


def _repeated(candidates: Sequence[Document], training: Sequence[Document]) -> set[int]:
    """Find the candidates that training documents contain, or that are near copies of them."""
    contained, seen_shares = _search(candidates, training, num_probes=_NUM_PROBES)
    return contained | set(np.flatnonzero(seen_shares > _MOST_SEEN).tolist())


def _search(
    candidates: Sequence[Document], training: Sequence[Document], num_probes: int
) -> tuple[set[int], NDArray[np.float64]]:
    """Return which candidates are contained, and the share of each one's probes in any block.

    A probe is 32 bytes of a candidate, hashed at every offset of the training text at once; only a
    block that holds the middle one is searched for the text itself.
    """
    texts = [document.text.strip().encode() for document in candidates]
    probes = np.stack([_probe(text, num_probes) for text in texts])
    is_probe = np.zeros(2**20, dtype=bool)
    is_probe[probes >> _TOP_BITS] = True
    is_seen = np.zeros(probes.shape, dtype=bool)
    found: set[int] = set()
    short = [index for index, text in enumerate(texts) if len(text) < _PROBE_BYTES]
    for block in _blocks(training):
        hashes = _hash_windows(block)
        is_here = np.isin(probes, hashes[is_probe[hashes >> _TOP_BITS]])
        is_seen |= is_here
        suspects = np.flatnonzero(is_here[:, num_probes // 2]).tolist()
        found |= {index for index in {*suspects, *short} - found if texts[index] in block}
    return found, is_seen.mean(axis=1)


def _probe(text: bytes, num_probes: int) -> NDArray[np.uint64]:
    # In the middle of each of as many equal parts.
    room = max(len(text) - _PROBE_BYTES, 0)
    starts = [room * (2 * part + 1) // (2 * num_probes) for part in range(num_probes)]
    windows = (text[at : at + _PROBE_BYTES].ljust(_PROBE_BYTES, b"\0") for at in starts)
    return np.concatenate([_hash_windows(window) for window in windows])


def _hash_windows(data: bytes) -> NDArray[np.uint64]:
    if len(data) < _PROBE_BYTES:
        return np.empty(0, dtype=np.uint64)
    num_windows = len(data) - _PROBE_BYTES + 1
    # Eight bytes at every offset, as overlapping words of the same memory.
    words = np.ndarray((len(data) - 7,), dtype="<u8", buffer=data, strides=(1,))
    hashes = np.zeros(num_windows, dtype=np.uint64)
    for place, factor in enumerate(_MIX):
        hashes += words[8 * place : 8 * place + num_windows] * np.uint64(factor)
    return hashes


def _blocks(documents: Sequence[Document]) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for document in documents:
        data = document.text.encode()
        if held and size + len(data) > _BLOCK_BYTES:
            yield b"\0".join(held)
            held, size = [], 0
        held.append(data)
        size += len(data)
    if held:
        yield b"\0".join(held)
