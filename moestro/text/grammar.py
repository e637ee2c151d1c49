"""Which tokens may come next when an answer must follow a JSON schema, a regex or a grammar.

A mask has one bit for each row of the model's vocabulary: those of tokens that would leave the
grammar, of special tokens and of padding rows are 0; those of the tokens that end a text are 1
where the text may end. Knows tokens and their bytes, not probabilities. Next: schema_limits.py,
stream.py.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import llguidance
import numpy as np

from moestro.errors import DataError
from moestro.text.schema_limits import read_schema
from moestro.text.tokenizer import Tokenizer

GrammarKind = Literal["json_schema", "json_object", "regex", "lark"]

# Work that compiling and one mask may take, in the library's own units; all of it is far below a
# second, and sound grammars take microseconds.
_LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
_MAX_SOURCE_CHARS = 1 << 16
# Between two marks of JSON: some models want a space or an indented line, and weak ones would
# pad without end where white space is free.
_WHITESPACE = r"[ ]?|\n[ ]{0,16}"
_MAX_REASON_CHARS = 200
# Texts that a grammar forced, kept with their tokens.
_MOST_ENCODED = 4096


@dataclass(frozen=True, kw_only=True)
class GrammarSpec:
    """What an answer must follow; a `json_object` is any JSON object and needs no source.

    `param` is the field of a request that says so, for errors.
    """

    kind: GrammarKind
    source: str = ""
    param: str | None = None


class Grammar:
    """One answer as it follows a grammar: ask what may come, accept a token of that, repeat."""

    def __init__(
        self,
        matcher: llguidance.LLMatcher,
        vocab_size: int,
        eos_ids: frozenset[int],
        param: str | None = None,
    ) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._param = param
        self._has_ended = False
        self._is_complete = matcher.is_stopped()

    @property
    def is_finished(self) -> bool:
        """Whether the text has ended, or is complete and can only end."""
        return self._has_ended or self._is_complete

    def mask(self) -> bytes:
        """Return which of the model's tokens may come next: a bit each, the lowest id's first.

        After the end only the tokens that end a text are set. Whole 32-bit words.
        """
        if self.is_finished:
            self._check()
            return _pack(self._eos_ids, self._vocab_size)
        bits: bytes = self._matcher.compute_bitmask()
        self._check()
        return bits

    def offer(self, token_id: int) -> bool:
        """Take the next token if it may come, and return whether: for less than a mask costs."""
        if self._has_ended or self._is_complete:
            self._check()
            is_taken = token_id in self._eos_ids
            self._has_ended |= is_taken
            return is_taken
        return self._take(token_id)

    def accept(self, token_id: int) -> None:
        """Take the next token; one that the mask does not allow raises DataError."""
        if self.is_finished and token_id in self._eos_ids:
            self._has_ended = True
            return
        if self._has_ended or not self._take(token_id):
            raise DataError(f"token {token_id} does not follow the grammar: sample from its mask")

    def force(self, stop_ids: Collection[int]) -> list[int]:
        """Take all tokens of which each is the only one that may come, and return them.

        None from the first one on that is among `stop_ids`.
        """
        if self._has_ended or self._is_complete:
            return []
        ahead = self._matcher.compute_ff_tokens()
        if not ahead:
            self._check()
        forced = []
        for token_id in ahead:
            if token_id in stop_ids or not self._take(token_id):
                break
            forced.append(token_id)
        return forced

    def copy(self) -> "Grammar":
        """Return another answer that goes on from here by itself."""
        twin = Grammar(self._matcher.deep_copy(), self._vocab_size, self._eos_ids, self._param)
        twin._has_ended = self._has_ended
        return twin

    def _take(self, token_id: int) -> bool:
        if self._matcher.try_consume_tokens([token_id]) != 1:
            self._check()
            return False
        self._has_ended = token_id in self._eos_ids
        self._is_complete = self._matcher.is_stopped()
        return True

    def _check(self) -> None:
        if self._matcher.is_error():
            raise DataError(
                f"the grammar cannot be followed ({_one_line(self._matcher.get_error())}): make it"
                " simpler, and see that a text can come to its end",
                param=self._param,
            )


class GrammarFactory:
    """Compiles grammars for one vocabulary; built once, as it sorts all tokens by their bytes."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        vocab_size: int | None = None,
        eos_ids: Collection[int] = (),
    ) -> None:
        """Take a tokenizer, the model's own number of rows, and every token that ends a text."""
        self._vocab_size = tokenizer.vocab_size if vocab_size is None else vocab_size
        tokenizer.check_fits(self._vocab_size)
        self._eos_ids = frozenset(eos_ids or (tokenizer.eos_id,))
        vocabulary = llguidance.TokenizerWrapper(
            _Vocabulary(tokenizer, self._vocab_size, self._eos_ids)
        )
        self._inner = llguidance.LLTokenizer(vocabulary, eos_token=sorted(self._eos_ids))

    def compile(self, spec: GrammarSpec) -> Grammar:
        """Build the grammar's start; one that is invalid or too large raises DataError."""
        try:
            return self._compile(spec)
        except DataError as error:
            error.param = spec.param
            raise

    def _compile(self, spec: GrammarSpec) -> Grammar:
        try:
            source = _translate(spec)
            matcher = llguidance.LLMatcher(self._inner, source, limits=_LIMITS, log_level=0)
        except ValueError as error:
            raise _unusable(spec, str(error)) from error
        if not matcher.is_error():
            # Some grammars that no text can satisfy, and some too large, fail at the first mask.
            matcher.compute_bitmask()
        if matcher.is_error():
            raise _unusable(spec, matcher.get_error())
        return Grammar(matcher, self._vocab_size, self._eos_ids, spec.param)


# What llguidance says in names of its own.
_REASONS = {"NoExtensionBias": "no text follows it"}
_NAMES = {
    "json_schema": "JSON schema",
    "json_object": "JSON object",
    "regex": "regular expression",
    "lark": "grammar",
}


class _Vocabulary:
    """A tokenizer as llguidance wants it; rows without bytes are never allowed."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        # Asked in the middle of a step for what a grammar forces, like a schema's few names.
        self._encode = lru_cache(_MOST_ENCODED)(self._encode_once)
        self.eos_token_id = min(eos_ids)
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(vocab_size)]
        self.special_token_ids = [token_id for token_id, data in enumerate(self.tokens) if not data]

    def __call__(self, data: bytes) -> list[int]:
        return self._encode(data)

    def _encode_once(self, data: bytes) -> list[int]:
        return self._tokenizer.encode(data.decode("utf-8", errors="replace"))


def _unusable(spec: GrammarSpec, reason: str) -> DataError:
    return DataError(
        f"the {_NAMES[spec.kind]} cannot be used ({_one_line(reason)}):"
        " correct it or make it simpler"
    )


def _translate(spec: GrammarSpec) -> str:
    if spec.kind == "json_object":
        source = '{"type": "object"}'
    else:
        source = read_schema(spec.source) if spec.kind == "json_schema" else _read_source(spec)
    try:
        source.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the {_NAMES[spec.kind]} holds a lone surrogate: send valid Unicode"
        ) from error
    if spec.kind == "regex":
        return llguidance.LLMatcher.grammar_from_regex(source)
    if spec.kind == "lark":
        return llguidance.LLMatcher.grammar_from_lark(source)
    return llguidance.LLMatcher.grammar_from_json_schema(
        source, overrides={"whitespace_pattern": _WHITESPACE, "whitespace_flexible": True}
    )


def _read_source(spec: GrammarSpec) -> str:
    if len(spec.source) > _MAX_SOURCE_CHARS:
        raise DataError(
            f"the {_NAMES[spec.kind]} has {len(spec.source)} characters,"
            f" limit {_MAX_SOURCE_CHARS}: shorten it"
        )
    if spec.kind == "lark" and "%json" in spec.source:
        raise DataError("the grammar holds a %json part: send a schema as json_schema instead")
    return spec.source


def _pack(token_ids: Iterable[int], vocab_size: int) -> bytes:
    is_allowed = np.zeros(-(-vocab_size // 32) * 32, dtype=np.bool_)
    is_allowed[list(token_ids)] = True
    return np.packbits(is_allowed, bitorder="little").tobytes()


def _one_line(reason: str) -> str:
    line = reason.strip().partition("\n")[0]
    line = _REASONS.get(line, line)
    shortened = line[:_MAX_REASON_CHARS]
    return shortened if shortened == line else f"{shortened}..."
