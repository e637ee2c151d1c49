"""READ FIRST: sources in, clean documents out; whatever is left out is counted.

A document is UTF-8, not empty, and not there twice, white space aside. Knows bytes and names, not
tokens. Next: sources.py, then split.py, shards.py, loader.py.
"""

import codecs
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import get_args

from moestro.data.config import DataConfig
from moestro.data.sources import Found, LeftOut, Reason, read_path
from moestro.data.stdlib import NAMES, read_stdlib
from moestro.errors import DataError

_NUM_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text with the name of its source and the domain that its loss is counted under.

    `whole` is the digest of the long document that it was cut from, None where it was not.
    """

    text: str
    name: str
    domain: str
    whole: str | None = None

    def draw(self, purpose: str, seed: int) -> float:
        """Draw a number in 0..1 that depends on the text alone, never on the other documents."""
        return _draw(self.text, purpose, seed)

    def draw_whole(self, purpose: str, seed: int) -> float:
        """Draw one number for all parts of a document."""
        return _draw(self.whole or self.text, purpose, seed)


def _draw(text: str, purpose: str, seed: int) -> float:
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=f"{purpose}:{seed}".encode())
    return int.from_bytes(digest.digest(), "little") / 2**64


@dataclass
class CorpusStats:
    """What was kept, by domain, and what was left out, by reason, with the first names of each."""

    documents: dict[str, int] = field(default_factory=dict)
    num_bytes: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=lambda: dict.fromkeys(get_args(Reason), 0))
    examples: dict[str, list[str]] = field(default_factory=dict)
    num_cut: int = 0
    num_unused: int = 0

    def keep(self, document: Document) -> None:
        """Count one document."""
        size = len(document.text.encode())
        self.documents[document.domain] = self.documents.get(document.domain, 0) + 1
        self.num_bytes[document.domain] = self.num_bytes.get(document.domain, 0) + size

    def leave_out(self, item: LeftOut) -> None:
        """Count one thing that gave no document."""
        self.left_out[item.reason] += 1
        names = self.examples.setdefault(item.reason, [])
        if len(names) < _NUM_EXAMPLES:
            names.append(item.name)

    def describe_left_out(self) -> str:
        """Say in a few words what was left out."""
        parts = []
        for reason, count in self.left_out.items():
            if count:
                parts.append(f"{count} {reason} ({', '.join(self.examples[reason])})")
        return "; ".join(parts) or "nothing"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The documents of a run, in the order of their sources, and the counts."""

    documents: tuple[Document, ...]
    stats: CorpusStats


def read_corpus(config: DataConfig) -> Corpus:
    """Read every source of `config`; raise DataError where one is missing or none holds text."""
    stats = CorpusStats()
    documents: list[Document] = []
    seen: set[bytes] = set()
    for item in _read_sources(config):
        document = _clean(item, config, seen) if isinstance(item, Found) else item
        if isinstance(document, LeftOut):
            stats.leave_out(document)
            continue
        parts = _cut(document, config.max_document_bytes)
        stats.num_cut += len(parts) > 1
        documents += parts
    if not documents:
        why = (
            f"left out: {stats.describe_left_out()}" if any(stats.left_out.values()) else "no files"
        )
        raise DataError(
            f"{', '.join(config.paths)}: no readable text; {why}: name a folder or a file of UTF-8"
            f" text, of {config.min_bytes} bytes or more"
        )
    kept = tuple(documents) if config.max_bytes is None else _sample(documents, config)
    stats.num_unused = len(documents) - len(kept)
    for document in kept:
        stats.keep(document)
    return Corpus(documents=kept, stats=stats)


def cut_at_lines(text: str, max_bytes: int) -> list[str]:
    """Cut a text into parts of at most `max_bytes`, at line ends where there are any."""
    data = text.encode()
    parts = []
    start = 0
    while len(data) - start > max_bytes:
        end = data.rfind(b"\n", start, start + max_bytes) + 1
        if end <= start:
            end = start + max_bytes
            # Step back from the middle of a character.
            while data[end] & 0xC0 == 0x80:
                end -= 1
        parts.append(data[start:end].decode())
        start = end
    return [*parts, data[start:].decode()]


def _read_sources(config: DataConfig) -> Iterator[Found | LeftOut]:
    for index, path in enumerate(config.paths):
        domain = config.domains[index] if config.domains else None
        if path not in NAMES:
            yield from read_path(Path(path).expanduser(), domain)
            continue
        for item in read_stdlib():
            if domain and isinstance(item, Found):
                yield replace(item, domain=domain)
            else:
                yield item


def _sample(documents: list[Document], config: DataConfig) -> tuple[Document, ...]:
    # By draw, so that every domain keeps its share; the first is taken whatever its size.
    order = sorted(range(len(documents)), key=lambda i: documents[i].draw("keep", config.seed))
    sizes = [len(documents[index].text.encode()) for index in order]
    num_kept = sum(size <= (config.max_bytes or 0) for size in accumulate(sizes))
    return tuple(documents[index] for index in sorted(order[: max(num_kept, 1)]))


def _clean(found: Found, config: DataConfig, seen: set[bytes]) -> Document | LeftOut:
    try:
        text = found.data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return LeftOut(name=found.name, reason="not UTF-8" if _is_text(found.data) else "binary")
    if "\0" in text:
        return LeftOut(name=found.name, reason="binary")
    if not text.strip():
        return LeftOut(name=found.name, reason="empty")
    if len(found.data) < config.min_bytes:
        return LeftOut(name=found.name, reason="short")
    # Line ends and white space aside: a copy from another system would be trained on beside its
    # held-out original.
    digest = hashlib.sha256(" ".join(text.split()).encode()).digest()
    if digest in seen:
        return LeftOut(name=found.name, reason="duplicate")
    seen.add(digest)
    return Document(text=text, name=found.name, domain=found.domain)


def _is_text(data: bytes) -> bool:
    # UTF-16 is full of zeros, but begins with a mark.
    return b"\0" not in data or data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def _cut(document: Document, max_bytes: int) -> list[Document]:
    parts = cut_at_lines(document.text, max_bytes)
    if len(parts) == 1:
        return [document]
    whole = hashlib.sha256(document.text.encode()).hexdigest()
    return [
        replace(document, text=part, name=f"{document.name}#{number}", whole=whole)
        for number, part in enumerate(parts, start=1)
    ]
