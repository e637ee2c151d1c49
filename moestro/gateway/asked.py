"""What a request asks for, as far as a decision needs it; and changes to a field or two of it.

A body is read into its fields, and of these only the few that matter here are looked at: the others
go on exactly as they came. Next: choosing.py, attempts.py.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from moestro.api.relay import Call
from moestro.errors import ConfigError, DataError
from moestro.gateway.content import estimate_tokens, flatten

Kind = Literal["chat", "completion", "messages", "count", "embeddings", "tokenize", "detokenize"]
KINDS: Mapping[str, Kind] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "count",
    "/v1/embeddings": "embeddings",
    "/tokenize": "tokenize",
    "/detokenize": "detokenize",
}
# Asked in Anthropic's dialect.
ANTHROPICS = ("messages", "count")
# What needs no model, only what cuts texts for it.
_FREE = ("count", "tokenize", "detokenize")
# What is answered at once and whole.
_UNWRITTEN = (*_FREE, "embeddings")
# What has no turns has its texts in one field.
_TEXTS: Mapping[Kind, str] = {
    "completion": "prompt",
    "embeddings": "input",
    "tokenize": "prompt",
    "detokenize": "tokens",
}
CONVERSATION_HEADER = "x-moestro-conversation"
# What of Anthropic's dialect is not in a body. Never a key.
_PASSED_HEADERS = ("anthropic-beta",)
_NO_HEADERS: Mapping[str, str] = {}

# A question shorter than this says little without what came before it.
_SHORT_CHARACTERS = 200
# What a policy sees of the turns before a short question.
_CONTEXT_CHARACTERS = 2000
# Texts have 3 to 5 as a rule; where they repeat themselves, more.
MOST_CHARACTERS_PER_TOKEN = 8
_CONSTRAINTS = frozenset(
    {
        "response_format",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "structured_outputs",
        "output_config",
    }
)
_HASH_BYTES = 16
_MOST_NUMBER = 2**53
_SHOWN_BYTES = 60

Fields = dict[str, msgspec.Raw]


class _Turn(msgspec.Struct):
    role: Any = ""
    content: Any = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


_read_fields = msgspec.json.Decoder(Fields).decode
_read_text = msgspec.json.Decoder(str | None).decode
_read_flag = msgspec.json.Decoder(bool | None).decode
_read_turns = msgspec.json.Decoder(list[_Turn]).decode
_read_stream_options = msgspec.json.Decoder(_StreamOptions | None).decode
_read_any = msgspec.json.Decoder().decode


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One request.

    `body` is what came, `fields` the same by name; `headers` are those of the client's that a
    backend of its dialect gets too. `conversation` is a hash of what names the
    conversation: the client's own name for it, or how it began; "" of a completion without a name.
    """

    kind: Kind
    path: str
    body: bytes
    fields: Fields
    model: str
    is_stream: bool
    conversation: str
    headers: Mapping[str, str]
    _turns: list[_Turn] = field(repr=False)

    @property
    def prompt(self) -> str:
        """The text by which a policy decides: the last user turn, after some of what came before it
        where it is short.
        """
        if not self._turns:
            return flatten(self.look(_TEXTS[self.kind]))
        return self._text_until(len(self._turns))

    @property
    def opening(self) -> str:
        """The text by which a policy decided at the conversation's beginning, if it did so here."""
        answered = (place for place, turn in enumerate(self._turns) if turn.role == "assistant")
        first = next(answered, len(self._turns))
        return self.prompt if first in (0, len(self._turns)) else self._text_until(first)

    @property
    def fewest_tokens(self) -> int:
        """How many tokens the prompt has at the very least."""
        texts = [turn.content for turn in self._turns] or [self.look("prompt")]
        return sum(len(flatten(text)) for text in texts) // MOST_CHARACTERS_PER_TOKEN

    @property
    def estimated_tokens(self) -> int:
        """About how many tokens the prompt has."""
        return estimate_tokens(len(self.body), (turn.content for turn in self._turns))

    @property
    def is_written(self) -> bool:
        """Whether an answer is written: token by token, by a model that talks."""
        return self.kind not in _UNWRITTEN

    @property
    def is_free(self) -> bool:
        """Whether it costs nothing: tokens are counted or told, and no model works."""
        return self.kind in _FREE

    @property
    def answer_limit(self) -> int | None:
        """How many tokens the answer may have, None where nothing limits it."""
        if not self.is_written:
            return 0
        limits = (self.number(name) for name in ("max_completion_tokens", "max_tokens"))
        return next((each for each in limits if each is not None and each >= 0), None)

    @property
    def num_choices(self) -> int:
        """How many answers are asked for: to each prompt of a completion, as many as `n` says."""
        prompts: Any = self.look("prompt") if self.kind == "completion" else None
        # One prompt may be a list of token ids.
        is_one = not isinstance(prompts, list) or any(isinstance(each, int) for each in prompts)
        return max(1, self.number("n") or 1) * (1 if is_one else len(prompts))

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with its usage."""
        raw = self.fields.get("stream_options")
        if raw is None:
            return False
        try:
            options = _read_stream_options(raw)
        except msgspec.ValidationError:
            return False
        return options is not None and bool(options.include_usage)

    @property
    def is_repeatable(self) -> bool:
        """Whether asking twice does nothing that asking once would not."""
        return not self.has("store")

    @property
    def is_constrained(self) -> bool:
        """Whether the answer must have a form that its second half alone would not have."""
        return any(self.has(name) for name in _CONSTRAINTS)

    def has(self, name: str) -> bool:
        """Tell whether a field is given and says something."""
        return bytes(self.fields.get(name, b"null")) not in (b"null", b"false", b"[]", b"{}")

    def look(self, name: str) -> Any:  # noqa: ANN401 (whatever a caller sends)
        """Return a field's value, None where it is absent."""
        return _look(self.fields, name)

    def number(self, name: str) -> int | None:
        """Return a field's whole number, None where it is absent or something else.

        One that no float can count up to is cut: what it limits is not limited by it.
        """
        value = self.look(name)
        if not isinstance(value, int | float) or value != int(value):
            return None
        return max(-_MOST_NUMBER, min(int(value), _MOST_NUMBER))

    def body_for(self, model: str) -> bytes:
        """Return the body with the model's name at a backend; as it came if it says that already.

        A body that says the name of a field in several ways is written anew: its parts stay as they
        are, but no two programs can differ over which of two fields counts.
        """
        is_plain = self.body.count(b'"model"') == 1 and b"\\u00" not in self.body
        if self.model == model and is_plain:
            return self.body
        return self.body_with({"model": model})

    def body_with(self, changes: Mapping[str, Any]) -> bytes:
        """Return the body with some fields changed; None removes one."""
        fields: dict[str, Any] = dict(self.fields)
        for name, value in changes.items():
            if value is None:
                fields.pop(name, None)
            else:
                fields[name] = value
        return msgspec.json.encode(fields)

    def _text_until(self, end: int) -> str:
        texts = [flatten(turn.content) for turn in self._turns[:end]]
        users = (place for place, turn in enumerate(self._turns[:end]) if turn.role == "user")
        last = max(users, default=len(texts) - 1)
        if len(texts[last]) >= _SHORT_CHARACTERS:
            return texts[last]
        system = [flatten(_look(self.fields, "system"))] if self.kind in ANTHROPICS else []
        before = "\n".join(text for text in (*system, *texts[:last]) if text)
        return f"{before[-_CONTEXT_CHARACTERS:]}\n{texts[last]}" if before else texts[last]


def read_call(call: Call) -> Asked:
    """Read a request; ConfigError or DataError for what its sender must change."""
    fields = _decode(call.body)
    kind = KINDS[call.path]
    model = _read(fields, "model", _read_text, "a text")
    if not model:
        raise ConfigError("model is missing: send one of /v1/models")
    turns: list[_Turn] = []
    if _has_turns(kind, fields):
        turns = _read(fields, "messages", _read_turns, "a list of messages") or []
        if not turns:
            raise ConfigError("messages is missing: send at least one")
    elif _TEXTS[kind] not in fields:
        raise ConfigError(f"{_TEXTS[kind]} is missing: send it")
    is_stream = bool(_read(fields, "stream", _read_flag, "true or false"))
    return Asked(
        kind=kind,
        path=call.path,
        body=call.body,
        fields=fields,
        model=model,
        is_stream=is_stream and kind not in _UNWRITTEN,
        conversation=_hash_conversation(call, fields, turns),
        headers=_pick_headers(call) if kind in ANTHROPICS else _NO_HEADERS,
        _turns=turns,
    )


def _has_turns(kind: Kind, fields: Fields) -> bool:
    if kind == "tokenize":
        # As routes read it: a prompt, or else a conversation.
        return "messages" in fields and "prompt" not in fields
    return kind not in _TEXTS


def _decode(body: bytes) -> Fields:
    try:
        return _read_fields(body)
    except RecursionError as error:
        raise DataError("the body nests too deeply: flatten it") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the body is not UTF-8: {error.reason}") from error
    except msgspec.ValidationError as error:
        raise DataError("the body is not an object: send one") from error
    except msgspec.DecodeError as error:
        raise DataError(f"the body is not JSON: {error}") from error


def _read(fields: Fields, name: str, read: Any, expected: str) -> Any:  # noqa: ANN401 (a decoder)
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return read(raw)
    except RecursionError as error:
        raise DataError(f"{name} nests too deeply: flatten it") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        shown = bytes(raw)[:_SHOWN_BYTES].decode(errors="replace")
        raise ConfigError(f"{name} is {shown}: it should be {expected}") from error


def _look(fields: Fields, name: str) -> Any:  # noqa: ANN401 (whatever a caller sends)
    raw = fields.get(name)
    return None if raw is None else _read(fields, name, _read_any, "JSON")


def _pick_headers(call: Call) -> Mapping[str, str]:
    return {
        name: value
        for name in _PASSED_HEADERS
        if (value := call.headers.get(name)) and value.isascii() and value.isprintable()
    }


def _hash_conversation(call: Call, fields: Fields, turns: list[_Turn]) -> str:
    given = call.headers.get(CONVERSATION_HEADER, "")
    if not (given or turns):
        return ""
    digest = hashlib.blake2b((call.caller or "").encode(), digest_size=_HASH_BYTES)
    if given:
        digest.update(b"\0named\0" + given.encode(errors="replace"))
    else:
        # One user may have many conversations, and many users may begin with the same words.
        digest.update(b"\0begun\0" + bytes(fields.get("user", b"")) + b"\0")
        digest.update(_beginning(fields, turns).encode(errors="replace"))
    return digest.hexdigest()


def _beginning(fields: Fields, turns: list[_Turn]) -> str:
    """Return what a conversation keeps from its first turn on: all up to its first answer."""
    texts = [bytes(fields.get("system", b"")).decode(errors="replace")]
    for turn in turns:
        if turn.role == "assistant":
            break
        texts.append(f"{turn.role}\0{flatten(turn.content)}")
    return "\0".join(texts)
