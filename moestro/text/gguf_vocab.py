"""A byte-level tokenizer out of the metadata of a GGUF file, chat template included.

Knows vocabularies, not weights. Next: byte_level.py, gguf_export.py,
moestro/gguf_file.py.
"""

from typing import Any

from moestro.errors import CheckpointError
from moestro.gguf_file import GgufFile
from moestro.text import cutting
from moestro.text.byte_level import AddedToken, Vocabulary, write_tokenizer

PREFIX = "tokenizer.ggml."
TEMPLATE_KEY = "tokenizer.chat_template"
MODEL = "gpt2"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
_ENDS = ("bos", "eos", "pad")


def read_vocabulary(file: GgufFile) -> Vocabulary:
    """Read a file's tokenizer; CheckpointError where it has none that can be read."""
    name = _text(file, "pre")
    if _text(file, "model") != MODEL:
        raise CheckpointError(
            f"{file.path}: its tokenizer is of kind {_text(file, 'model')!r}:"
            f" Moestro reads {MODEL}, byte-level ones"
        )
    way = cutting.CUTTINGS.get(cutting.ALIASES.get(name, name))
    if way is None:
        raise CheckpointError(
            f"{file.path}: its tokenizer cuts texts like {name!r}: Moestro knows"
            f" {', '.join(cutting.CUTTINGS)}"
        )
    tokens, merges = _texts(file, "tokens"), _texts(file, "merges")
    kinds = file.metadata.get(f"{PREFIX}token_type", [NORMAL] * len(tokens))
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise _damaged(file, "token_type")
    used = [
        (token_id, text, kind)
        for token_id, (text, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind != UNUSED
    ]
    vocab = {text: token_id for token_id, text, _ in used}
    if len(vocab) != len(used):
        raise _damaged(file, "tokens")
    added = [
        AddedToken(token_id, text, is_special=kind == CONTROL)
        for token_id, text, kind in used
        if kind in (CONTROL, USER_DEFINED)
    ]
    return Vocabulary(write_tokenizer(way, vocab, merges, added), _settings(file, tokens))


def _settings(file: GgufFile, tokens: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for end in _ENDS:
        token_id = file.metadata.get(f"{PREFIX}{end}_token_id")
        if type(token_id) is int and 0 <= token_id < len(tokens):
            settings[f"{end}_token"] = tokens[token_id]
    template = file.metadata.get(TEMPLATE_KEY)
    return settings | ({"chat_template": template} if isinstance(template, str) else {})


def _text(file: GgufFile, key: str) -> str:
    value = file.metadata.get(PREFIX + key)
    if not isinstance(value, str):
        raise _damaged(file, key)
    return value


def _texts(file: GgufFile, key: str) -> list[str]:
    values = file.metadata.get(PREFIX + key)
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise _damaged(file, key)
    return values


def _damaged(file: GgufFile, key: str) -> CheckpointError:
    return CheckpointError(
        f"{file.path}: {PREFIX}{key} is missing or not as it must be: convert the model anew"
    )
