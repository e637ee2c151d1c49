"""Fill-in-the-middle: a text told as prefix, suffix, middle, so that a model learns to fill gaps.

Each cut depends on the document's own text. Order PSM of arXiv 2207.14255, at the level of
characters. Next: shards.py.
"""

import random

from moestro.data.corpus import Document, cut_at_lines
from moestro.text.tokenizer import FimTokens

Cut = tuple[str, str, str]


def cut(document: Document, max_bytes: int, seed: int) -> list[Cut]:
    """Cut a document into examples of (prefix, middle, suffix); joined in order they are its text.

    An example ends at a line's end and has at most `max_bytes`; 0: one example.
    """
    dice = random.Random(f"{seed}:{document.draw('fim', seed)!r}")
    cuts = []
    parts = cut_at_lines(document.text, max_bytes) if max_bytes else [document.text]
    for part in parts:
        first, second = sorted((dice.randint(0, len(part)), dice.randint(0, len(part))))
        cuts.append((part[:first], part[first:second], part[second:]))
    return cuts


def arrange(ids: list[list[int]], tokens: FimTokens) -> list[list[int]]:
    """Lay out the ids of all parts of all cuts, in order, as one sequence for each cut."""
    triples = zip(ids[::3], ids[1::3], ids[2::3], strict=True)
    return [[*tokens.prompt(prefix, suffix), *middle] for prefix, middle, suffix in triples]
