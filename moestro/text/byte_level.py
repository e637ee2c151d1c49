"""A byte-level `tokenizer.json` put together from a vocabulary and its merges.

Where a checkpoint comes without one: GGUF files and tiktoken's have the same parts in other
spellings. Knows neither. Next: cutting.py, gguf_vocab.py, tiktoken_vocab.py.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from moestro.text.cutting import Cutting, write


class Vocabulary(NamedTuple):
    """The texts of tokenizer.json and, parsed, of tokenizer_config.json."""

    raw: str
    settings: dict[str, Any]


class AddedToken(NamedTuple):
    """A token that stands for itself: it is looked for before a text is cut."""

    token_id: int
    text: str
    is_special: bool


def write_tokenizer(
    cutting: Cutting,
    vocab: Mapping[str, int],
    merges: Sequence[str],
    added: Iterable[AddedToken],
) -> str:
    """Return the text of a tokenizer.json; bytes are spelled as `byte_characters` has them."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    spell = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [
                {"id": each.token_id, "content": each.text, **flags, "special": each.is_special}
                for each in added
            ],
            "pre_tokenizer": write(cutting),
            "decoder": spell | {"use_regex": False},
            "model": {
                "type": "BPE",
                "byte_fallback": False,
                "ignore_merges": cutting.ignores_merges,
                "vocab": vocab,
                "merges": merges,
            },
        },
        ensure_ascii=False,
    )


def byte_characters() -> list[str]:
    """Return the printable character that stands for each of the 256 bytes."""
    # Printable Latin-1 stands for itself; the other 68 bytes, in order, for U+0100 and up.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte if byte in printable else 256 + hidden.index(byte)) for byte in range(256)]
