"""A byte-level tokenizer into the metadata of a GGUF file, chat template included.

Knows vocabularies, not weights. Next: cutting.py, gguf_vocab.py.
"""

import json
from collections.abc import Mapping
from typing import Any

from moestro.errors import ConfigError
from moestro.text import cutting
from moestro.text.gguf_vocab import (
    CONTROL,
    MODEL,
    NORMAL,
    PREFIX,
    TEMPLATE_KEY,
    UNUSED,
    USER_DEFINED,
)
from moestro.text.tokenizer import Tokenizer


def write_vocabulary(tokenizer: Tokenizer, vocab_size: int, template: str | None) -> dict[str, Any]:
    """Return the metadata of a tokenizer; ConfigError where llama.cpp would cut texts otherwise."""
    raw, settings = tokenizer.vocabulary
    parsed = json.loads(raw)
    name = _name_cutting(parsed)
    tokens = [f"[PAD{token_id}]" for token_id in range(vocab_size)]
    kinds = [UNUSED] * vocab_size
    for text, token_id in parsed["model"]["vocab"].items():
        tokens[token_id], kinds[token_id] = text, NORMAL
    for added in parsed.get("added_tokens", ()):
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added.get("special") else USER_DEFINED
    merges = parsed["model"]["merges"]
    metadata: dict[str, Any] = {
        "model": MODEL,
        "pre": name,
        "tokens": tokens,
        "token_type": kinds,
        "merges": [each if isinstance(each, str) else " ".join(each) for each in merges],
        # As Moestro completes a text; a chat template writes its own.
        "add_bos_token": bool(settings.get("add_bos_token", True)),
    }
    metadata |= {f"{key}_token_id": token_id for key, token_id in _special_ids(tokenizer).items()}
    named = {PREFIX + key: value for key, value in metadata.items()}
    return named if template is None else named | {TEMPLATE_KEY: template}


def _name_cutting(parsed: Mapping[str, Any]) -> str:
    """Return llama.cpp's name for how a tokenizer cuts texts."""
    model, normalizer = parsed["model"], parsed.get("normalizer") or {}
    is_bytes = model.get("type") == "BPE" and not model.get("byte_fallback")
    name = cutting.name_of(parsed)
    if not is_bytes or normalizer.get("normalizers", normalizer) or name is None:
        raise ConfigError(
            "the model's tokenizer cuts texts in a way that llama.cpp has no name for"
            f" (of those that Moestro knows: {', '.join(cutting.CUTTINGS)}): write --to hf,"
            " or train with a tokenizer that Moestro learns now"
        )
    return name


def _special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return special tokens by llama.cpp's names for them."""
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    if tokenizer.fim is not None:
        fim = tokenizer.fim
        ids |= {"fim_pre": fim.prefix_id, "fim_suf": fim.suffix_id, "fim_mid": fim.middle_id}
    return ids
