"""Text to token ids and back, with any byte-level or byte-fallback `tokenizer.json`.

A special token's name inside a text is text: only `eos_id`, `bos_id`, `fim` and `encode_trusted`
give the special ids. Knows no model and no chat template. Next: pieces.py, stream.py, learn.py.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from moestro.errors import CheckpointError, DataError
from moestro.files import read_json, storage_errors, write_atomic, write_json
from moestro.gguf_file import GgufFile, is_gguf
from moestro.text.byte_level import Vocabulary
from moestro.text.gguf_vocab import read_vocabulary
from moestro.text.pieces import build_pieces
from moestro.text.tiktoken_vocab import NAME as TIKTOKEN_NAME
from moestro.text.tiktoken_vocab import read_tiktoken

# Names tried, in this order, where no tokenizer_config.json says which token ends or begins a text.
_EOS_NAMES = (
    "<|end_of_text|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<|endoftext|>",
    "</s>",
    "<eos>",
)
_BOS_NAMES = ("<|begin_of_text|>", "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<s>", "<bos>")
_FIM_NAMES = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
)

# What names Python files that a written tokenizer does not come with.
_OF_ITS_CODE = ("auto_map", "tokenizer_class")


@dataclass(frozen=True, kw_only=True)
class FimTokens:
    """The three ids that mark a fill-in-the-middle text: prefix, suffix, then the middle."""

    prefix_id: int
    suffix_id: int
    middle_id: int

    def prompt(self, prefix_ids: Sequence[int], suffix_ids: Sequence[int]) -> list[int]:
        """Lay out both sides of a gap so that what the model says next is what goes between."""
        return [self.prefix_id, *prefix_ids, self.suffix_id, *suffix_ids, self.middle_id]


class Tokenizer:
    """One vocabulary. A document is `bos_id`, its tokens, `eos_id`; the two are one id in ours."""

    def __init__(self, raw: str, settings: Mapping[str, Any] | None = None) -> None:
        """Take the texts of tokenizer.json and, parsed, of tokenizer_config.json."""
        self._raw = raw
        self._settings = dict(settings or {})
        self._inner, decoder = _parse(raw)
        self.pieces = build_pieces(self._inner, decoder)
        # Or a document that mentions <|end_of_text|> would end there.
        self._inner.encode_special_tokens = True
        self.vocab_size = (
            max(self._inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        )
        self.eos_id = self._find_eos()
        bos_id = self._find("bos_token", _BOS_NAMES)
        self.bos_id = self.eos_id if bos_id is None else bos_id
        self.fim = self._find_fim()

    @classmethod
    def load(cls, path: Path | str) -> "Tokenizer":
        """Load a tokenizer.json or a folder's, with tokenizer_config.json, or a GGUF file's.

        Where a folder has none, its tiktoken.model.
        """
        path = Path(path)
        if is_gguf(path):
            return cls._load_gguf(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        other = file.with_name(TIKTOKEN_NAME)
        if other.is_file() and (file == other or not file.exists()):
            return cls(*read_tiktoken(other))
        try:
            raw = file.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{file}: no such file: a model needs its tokenizer.json, or {TIKTOKEN_NAME}"
            ) from error
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{file}: not UTF-8: restore the file") from error
        except OSError as error:
            raise CheckpointError(f"{file}: {error.strerror}: grant access to the file") from error
        beside = file.with_name("tokenizer_config.json")
        settings = read_json(beside) if beside.is_file() else None
        try:
            return cls(raw, settings)
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from error

    @classmethod
    def _load_gguf(cls, path: Path) -> "Tokenizer":
        try:
            return cls(*read_vocabulary(GgufFile(path)))
        except CheckpointError as error:
            named = str(error).startswith(str(path))
            raise error if named else CheckpointError(f"{path}: {error}") from error

    @property
    def vocabulary(self) -> Vocabulary:
        """The texts that it was made from."""
        return Vocabulary(self._raw, self._settings)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, unchanged, and a tokenizer_config.json that names a text's ends."""
        names = {
            "eos_token": self.token_text(self.eos_id),
            "bos_token": self.token_text(self.bos_id),
        }
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "tokenizer.json", self._raw.encode())
        left_out = _OF_ITS_CODE if "auto_map" in self._settings else ()
        kept = {key: value for key, value in self._settings.items() if key not in left_out}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | kept
        present = {key: value for key, value in settings.items() if value is not None}
        write_json(folder / "tokenizer_config.json", names | present)

    def encode(self, text: str) -> list[int]:
        """Turn text into ids; nothing is added at either end."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Turn several texts into ids, in parallel."""
        for text in texts:
            _check_unicode(text)
        encodings = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_trusted(self, text: str) -> list[int]:
        """Turn text into ids with special tokens' names as special ids: for who wrote all of it."""
        _check_unicode(text)
        # A batch of one, as only batches let other threads run meanwhile.
        return self._trusting.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def decode(self, ids: Iterable[int], *, continues: bool = False) -> str:
        """Turn ids into text: special tokens vanish, broken UTF-8 becomes U+FFFD.

        `continues`: the ids go on from an earlier text, so their first space is not a Llama-style
        lead.
        """
        return self.decode_bytes(ids, continues=continues).decode("utf-8", errors="replace")

    def decode_named(self, ids: Iterable[int]) -> str:
        """Turn ids into text in which special tokens stand by their names."""
        named = self._added
        data = b"".join(
            named[each].encode() if each in named else self.pieces.read(each) for each in ids
        )
        data = data.removeprefix(b" ") if self.pieces.has_lead_space else data
        return data.decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int], *, continues: bool = False) -> bytes:
        """Turn ids into the exact bytes that they stand for."""
        data = b"".join(map(self.pieces.read, ids))
        return data if continues or not self.pieces.has_lead_space else data.removeprefix(b" ")

    def token_bytes(self, token_id: int) -> bytes:
        """Return one token's exact bytes; a special token has none."""
        return self.pieces.read(token_id)

    def token_text(self, token_id: int) -> str:
        r"""Show one token to a person: a special token by its name, half a character as `\xe2`."""
        added = self._added.get(token_id)
        if added is not None:
            return added
        return self.token_bytes(token_id).decode("utf-8", errors="backslashreplace")

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that decides which ids a text becomes."""
        return hashlib.sha256(self._raw.encode()).hexdigest()

    def check_fits(self, vocab_size: int) -> None:
        """Raise CheckpointError unless a model of `vocab_size` rows knows every id."""
        if self.vocab_size > vocab_size:
            raise CheckpointError(
                f"the tokenizer has {self.vocab_size} ids, but the model's vocab_size is"
                f" {vocab_size}: use the tokenizer that came with the model"
            )

    @cached_property
    def _added(self) -> Mapping[int, str]:
        decoder = self._inner.get_added_tokens_decoder()
        return {token_id: str(added.content) for token_id, added in decoder.items()}

    @cached_property
    def _trusting(self) -> tokenizers.Tokenizer:
        # A second one, as the switch in the first belongs to all of its callers at once.
        return tokenizers.Tokenizer.from_str(self._raw)

    def _find(self, key: str, names: Sequence[str]) -> int | None:
        named = self._settings.get(key)
        if isinstance(named, Mapping):
            named = named.get("content")
        wanted = (named,) if isinstance(named, str) else names
        ids = (self._inner.token_to_id(name) for name in wanted)
        return next((token_id for token_id in ids if token_id is not None), None)

    def _find_eos(self) -> int:
        eos_id = self._find("eos_token", _EOS_NAMES)
        if eos_id is None:
            raise CheckpointError(
                "no token ends a text: name one of its tokens as eos_token in tokenizer_config.json"
            )
        return eos_id

    def _find_fim(self) -> FimTokens | None:
        for names in _FIM_NAMES:
            prefix, suffix, middle = (self._inner.token_to_id(name) for name in names)
            if prefix is not None and suffix is not None and middle is not None:
                return FimTokens(prefix_id=prefix, suffix_id=suffix, middle_id=middle)
        return None


def _parse(raw: str) -> tuple[tokenizers.Tokenizer, Mapping[str, Any] | None]:
    try:
        parsed = json.loads(raw)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"not valid JSON ({error}): restore the file") from error
    if not isinstance(parsed, dict) or "model" not in parsed:
        raise CheckpointError("holds no tokenizer: expected an object with a model")
    try:
        return tokenizers.Tokenizer.from_str(raw), parsed.get("decoder")
    except Exception as error:  # The library raises plain Exception for every malformed file.
        reason = " ".join(str(error).split())
        raise CheckpointError(f"not a tokenizer that can be read ({reason})") from error


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"text holds a lone surrogate at character {error.start}: send valid Unicode"
        ) from error
