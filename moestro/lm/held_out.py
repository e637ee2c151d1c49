"""Which held-out text a review reads, and what gzip, xz and an n-gram model make of those bytes.

Numbers of different bytes cannot be compared, so whoever shortens the text measures all of them
anew. Knows no model. Next: review.py, data/baselines.py.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from moestro.data import baselines
from moestro.data.corpus import Document, cut_at_lines
from moestro.data.shards import Shards
from moestro.text.tokenizer import Tokenizer

# As much as the n-gram model of the whole held-out text is fitted on.
_MAX_TRAINING_BYTES = 20_000_000
_BORDER = b"\0" * 5
# Each is measured against every other: of records that name their web site, for hours.
_MOST_DOMAINS = 12
OTHERS = "all others"
# Of its domain's room, so that no document decides the figure.
_LARGEST_SHARE = 1 / 64
# A piece this long fills a small model's context; where there is room for few, they are shorter.
_LEAST_BYTES = 2048


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Documents by domain, and the bytes of all that were held out."""

    domains: dict[str, list[Document]]
    total_bytes: int

    @property
    def documents(self) -> list[Document]:
        """All documents, domain after domain."""
        return [document for part in self.domains.values() for document in part]

    @property
    def num_bytes(self) -> int:
        """Bytes of text chosen."""
        return sum(map(_size, self.documents))


def choose(documents: Sequence[Document], max_bytes: int) -> HeldOut:
    """Choose about `max_bytes` of held-out text by the documents' own hashes; all of it if it fits.

    Half of the room follows the domains' sizes, half is the same for each, so that a small
    domain is still measured. Beyond the 12 largest domains all are one, `OTHERS`. Many documents
    each give one piece, cut at line ends from anywhere in them: none fills more than a 64th of its
    domain's room, or a quarter where pieces would become too short to predict from.
    """
    by_domain = _by_domain(documents)
    sizes = {name: sum(map(_size, part)) for name, part in by_domain.items()}
    total = sum(sizes.values())
    if total > max_bytes:
        for name, part in by_domain.items():
            room = max_bytes * (sizes[name] / total + 1 / len(by_domain)) / 2
            by_domain[name] = _shorten(part, max(int(room), 64))
    return HeldOut(domains=by_domain, total_bytes=total)


def measure_baselines(chosen: HeldOut, data: Shards, tokenizer: Tokenizer) -> dict[str, float]:
    """Return bits per byte by `gzip`, `xz` and `ngram`; where all was chosen, the run has them."""
    known = data.about.get("baselines")
    if known and chosen.documents and chosen.num_bytes == chosen.total_bytes:
        return dict(known)
    texts = [document.text.encode() for document in chosen.documents]
    joined = b"".join(texts)
    if not joined:
        return {}
    measured = {
        "gzip": baselines.gzip_bits_per_byte(joined),
        "xz": baselines.xz_bits_per_byte(joined),
    }
    training = training_bytes(data, tokenizer, _MAX_TRAINING_BYTES)
    if training:
        measured["ngram"] = baselines.ngram_bits_per_byte(training, texts)
    return measured


def training_bytes(data: Shards, tokenizer: Tokenizer, max_bytes: int) -> bytes:
    """Read the first training documents back from their ids, each in reading order."""
    ids = np.asarray(data.tokens[: _num_tokens(data, max_bytes)])
    ends = np.flatnonzero(ids == tokenizer.eos_id).tolist()
    parts: list[bytes] = []
    was_fim = False
    for start, end in pairwise([-1, *ends, len(ids)]):
        example = ids[start + 1 : end].tolist()
        if not example:
            continue
        is_fim = tokenizer.fim is not None and tokenizer.fim.prefix_id in example[:2]
        # A document told as several examples gets no borders within it.
        if parts and not (is_fim and was_fim):
            parts.append(_BORDER)
        parts.append(tokenizer.decode_bytes(_in_order(example, tokenizer) if is_fim else example))
        was_fim = is_fim
    return b"".join(parts)[:max_bytes]


def _num_tokens(data: Shards, max_bytes: int) -> int:
    parts = data.about.get("training", {}).get("domains", {}).values()
    num_bytes = sum(part["num_bytes"] for part in parts)
    num_tokens = sum(part["num_tokens"] for part in parts)
    if not num_bytes:
        return max_bytes
    # A tenth more, since the first documents may have shorter tokens than the mean.
    return int(1.1 * max_bytes * num_tokens / num_bytes) + 1


def _in_order(example: list[int], tokenizer: Tokenizer) -> list[int]:
    assert tokenizer.fim is not None
    marks = (tokenizer.fim.prefix_id, tokenizer.fim.suffix_id, tokenizer.fim.middle_id)
    if not all(mark in example for mark in marks):
        return example
    prefix, suffix, middle = (example.index(mark) for mark in marks)
    return example[prefix + 1 : suffix] + example[middle + 1 :] + example[suffix + 1 : middle]


def _by_domain(documents: Sequence[Document]) -> dict[str, list[Document]]:
    sizes: Counter[str] = Counter()
    for document in documents:
        sizes[document.domain] += _size(document)
    named = sorted(sizes, key=lambda name: (-sizes[name], name))[:_MOST_DOMAINS]
    by_domain: dict[str, list[Document]] = {}
    for document in documents:
        name = document.domain if document.domain in named else OTHERS
        by_domain.setdefault(name, []).append(document)
    return by_domain


def _shorten(documents: Sequence[Document], room: int) -> list[Document]:
    chosen: list[Document] = []
    longest = max(int(room * _LARGEST_SHARE), min(room // 4, _LEAST_BYTES), 1)
    for document in sorted(documents, key=lambda document: document.draw("review", 0)):
        piece = replace(document, text=_piece(document, min(longest, room)))
        chosen.append(piece)
        room -= _size(piece)
        if room <= longest // 4:
            break
    return chosen


def _piece(document: Document, max_bytes: int) -> str:
    parts = cut_at_lines(document.text, max_bytes)
    # The last one is what was left over, perhaps a line.
    whole = parts[:-1] or parts
    return whole[int(document.draw("piece", 0) * len(whole))]


def _size(document: Document) -> int:
    return len(document.text.encode())
