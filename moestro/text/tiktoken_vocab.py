"""A byte-level tokenizer out of a `tiktoken.model`, as Moonlight and Kimi K2 are published.

The file has each token's bytes in base64 and its rank, by which bytes merge. How texts are cut is
written in Python beside it, which is not run: all of this family cut alike (cutting.py). Knows
vocabularies, not weights. Next: byte_level.py, tokenizer.py.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moestro.errors import CheckpointError
from moestro.files import read_json
from moestro.text.byte_level import AddedToken, Vocabulary, byte_characters, write_tokenizer
from moestro.text.cutting import CUTTINGS

NAME = "tiktoken.model"
_CLASS = "TikTokenTokenizer"
# Ids behind the last rank that belong to special tokens, named or not.
_NUM_RESERVED = 256


def read_tiktoken(file: Path) -> Vocabulary:
    """Read a tiktoken.model and the tokenizer_config.json beside it; CheckpointError if bad."""
    settings = _read_settings(file)
    ranks = _read_ranks(file)
    characters = byte_characters()
    spelled = {token: "".join(characters[byte] for byte in token) for token in ranks}
    raw = write_tokenizer(
        CUTTINGS["kimi-k2"],
        {spelled[token]: rank for token, rank in ranks.items()},
        [f"{spelled[left]} {spelled[right]}" for left, right in _find_merges(ranks)],
        _read_added(file, settings, len(ranks)),
    )
    # Of a tokenizer.json's class from here on.
    return Vocabulary(raw, {key: settings[key] for key in settings if key != "tokenizer_class"})


def _read_settings(file: Path) -> dict[str, Any]:
    beside = file.with_name("tokenizer_config.json")
    if not beside.is_file():
        raise CheckpointError(
            f"{beside}: no such file: a {NAME} needs it for the special tokens: restore it"
        )
    settings = read_json(beside)
    if settings.get("tokenizer_class") != _CLASS:
        raise CheckpointError(
            f"{beside}: tokenizer_class is {settings.get('tokenizer_class')!r}, but a {NAME} is cut"
            f" as {_CLASS} of Moonlight and Kimi K2 does it: give the model a tokenizer.json"
        )
    return settings


def _read_ranks(file: Path) -> dict[bytes, int]:
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}: grant access to the file") from error
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(filter(None, lines), start=1):
        try:
            spelled, rank = line.split()
            ranks[base64.b64decode(spelled, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise CheckpointError(
                f"{file}: line {number} is not a token in base64 and its rank: restore the file"
            ) from error
    if sorted(ranks.values()) != list(range(len(lines) - lines.count(b""))):
        raise CheckpointError(f"{file}: its ranks are not 0, 1, 2, ...: restore the file")
    missing = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    if missing is not None:
        raise CheckpointError(f"{file}: no token for the byte {missing:#04x}: restore the file")
    return ranks


def _find_merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the pairs of tokens that join to one, in the order in which a text's are joined."""
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = ((token[:place], token[place:]) for place in range(1, len(token)))
        yield from ((left, right) for left, right in halves if left in ranks and right in ranks)


def _read_added(file: Path, settings: Mapping[str, Any], num_ranks: int) -> list[AddedToken]:
    tokens = {
        token_id: AddedToken(token_id, f"<|reserved_token_{token_id}|>", is_special=True)
        for token_id in range(num_ranks, num_ranks + _NUM_RESERVED)
    }
    try:
        for name, each in (settings.get("added_tokens_decoder") or {}).items():
            is_special = each.get("special", True) is True
            tokens[int(name)] = AddedToken(int(name), str(each["content"]), is_special)
    except (AttributeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{file.with_name('tokenizer_config.json')}: added_tokens_decoder is not tokens by"
            f" their ids ({error}): restore the file"
        ) from error
    return [tokens[token_id] for token_id in sorted(tokens)]
