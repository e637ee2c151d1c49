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
_TOP_BITS = np.uint64(48)
# Any odd numbers mix; they only choose which blocks are searched exactly.
_MIX = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Both sides, and the held-out documents dropped because a training document contains them."""

    training: tuple[Document, ...]
    held_out: tuple[Document, ...]
    dropped: tuple[Document, ...] = ()


def split(documents: Sequence[Document], held_out: float, seed: int) -> Split:
    """Hold out about a share of the documents, so that none changes sides when others come.

    Fewer documents than `1 / held_out` cannot meet the share: then the tail of the longest one is
    held out.
    """
    chosen = [document.draw("split", seed) < held_out for document in documents]
    if len(documents) >= 1 / held_out and any(chosen) and not all(chosen):
        training = [
            document for document, is_held in zip(documents, chosen, strict=True) if not is_held
        ]
        candidates = [
            document for document, is_held in zip(documents, chosen, strict=True) if is_held
        ]
        repeated = _contained(candidates, training)
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
        cut = longest.text.rfind("\n", 0, size - wanted) + 1 or size - wanted
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
    """Find the candidates whose whole text stands inside a training document.

    Each is probed by 32 bytes from its middle, hashed at every offset of the training text at once;
    only a block that holds the probe is searched for the text itself.
    """
    texts = [document.text.strip().encode() for document in candidates]
    probes = np.array([_probe(text) for text in texts], dtype=np.uint64)
    is_probe = np.zeros(2**16, dtype=bool)
    is_probe[probes >> _TOP_BITS] = True
    found: set[int] = set()
    short = [index for index, text in enumerate(texts) if len(text) < _PROBE_BYTES]
    for block in _blocks(training):
        hashes = _hash_windows(block)
        likely = hashes[is_probe[hashes >> _TOP_BITS]]
        suspects = np.flatnonzero(np.isin(probes, likely)).tolist()
        found |= {index for index in {*suspects, *short} - found if texts[index] in block}
    return found


def _probe(text: bytes) -> int:
    middle = max((len(text) - _PROBE_BYTES) // 2, 0)
    window = text[middle : middle + _PROBE_BYTES].ljust(_PROBE_BYTES, b"\0")
    return int(_hash_windows(window)[0])


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
