"""Chat messages to a prompt, with the checkpoint's own chat template.

A model without one gets `User:` and `Assistant:` paragraphs, as base models know them from
transcripts. Knows messages in OpenAI's shape, not HTTP. Next: sandbox.py, untrusted.py, tools.py.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.meta import find_undeclared_variables

from moestro.errors import CheckpointError, DataError
from moestro.files import read_json
from moestro.gguf_file import GgufFile, is_gguf
from moestro.text.gguf_vocab import read_vocabulary
from moestro.text.sandbox import Program
from moestro.text.tokenizer import Tokenizer
from moestro.text.untrusted import Marks, SpecialNames, find_searched, list_texts

PLAIN_TEMPLATE = """\
{%- if tools %}{{ raise_exception("this model has no chat template that could tell it of tools") }}
{%- endif %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role in ("system", "developer") %}{{ message.content }}
    {%- elif message.role == "user" %}User: {{ message.content }}
    {%- elif message.role == "assistant" %}Assistant: {{ message.content or "" }}
    {%- else %}{{ raise_exception("this model's template knows no role " ~ message.role) }}
    {%- endif %}
    {{- "\\n\\n" if not loop.last or add_generation_prompt }}
{%- endfor %}
{%- if add_generation_prompt %}Assistant:{% endif %}"""
_PLAIN_STOPS = ("\n\nUser:", "\nUser:")
# Such a template writes the arguments of an earlier call as JSON itself, so it wants them parsed.
_WANTS_OBJECTS = re.compile(r"""arguments['"\]]*\s*(?:\|\s*(?:tojson|items)|\.items\(\))""")
_TAKES_TEXT = re.compile(r"""arguments['"\]]*\s+is\s+(?:not\s+)?(?:string|mapping)""")
_NO_NAMES = SpecialNames(special=frozenset(), control=frozenset())


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt; a name that a user wrote never lies whole within one piece."""

    pieces: tuple[str, ...]

    @property
    def text(self) -> str:
        """The prompt as a person reads it."""
        return "".join(self.pieces)

    def encode(self, tokenizer: Tokenizer) -> list[int]:
        """Turn the prompt into ids: the template's special tokens are special, a user's are not."""
        return [token_id for piece in self.pieces for token_id in tokenizer.encode_trusted(piece)]


class ChatTemplate:
    """One model's way to write a conversation.

    `stops`: texts that end an answer, where no token does. `source`: the template's own text, from
    which reasoning.py tells how the model writes; `tool_source` is that of the one for tools, from
    which tools.py does. `takes_tools`: it has something to say of them.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        *,
        variables: Mapping[str, str] | None = None,
        names: SpecialNames = _NO_NAMES,
        stops: Sequence[str] = (),
    ) -> None:
        """Compile templates by name, of which `default` is needed and `tool_use` is for tools."""
        if "default" not in sources:
            found = ", ".join(sorted(sources)) or "none"
            raise CheckpointError(
                f"the model has the chat templates {found}: it needs one named default"
            )
        self.source = sources["default"]
        self.tool_source = sources.get("tool_use", self.source)
        self.stops = tuple(stops)
        self._writers = {name: _Writer(source) for name, source in sources.items()}
        writer = self._writers.get("tool_use", self._writers["default"])
        self.takes_tools = "tools" in find_undeclared_variables(writer.program.tree)
        self._variables = dict(variables or {})
        self._names = names

    @classmethod
    def load(cls, folder: Path) -> "ChatTemplate | None":
        """Load a checkpoint's own template, or return None where it has none."""
        tokenizer, settings = _read_vocabulary(folder)
        sources = _find_sources(folder, settings)
        if not sources:
            return None
        try:
            names = _special_names(tokenizer)
            return cls(sources, variables=_token_names(settings), names=names)
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from error

    @classmethod
    def plain(cls, folder: Path) -> "ChatTemplate":
        """Build the template for a checkpoint that has none: paragraphs with a speaker's name."""
        tokenizer, settings = _read_vocabulary(folder)
        return cls(
            {"default": PLAIN_TEMPLATE},
            variables=_token_names(settings),
            names=_special_names(tokenizer),
            stops=_PLAIN_STOPS,
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        **variables: Any,  # noqa: ANN401 - plain JSON for the template
    ) -> Prompt:
        """Write a conversation; `continue_final` leaves the last message open for more."""
        if not messages:
            raise DataError("the conversation has no messages: send at least one")
        writer = self._writers.get("tool_use" if tools else "default", self._writers["default"])
        try:
            texts = list_texts([writer.source, messages, tools, variables])
            marks = Marks(self._names, writer.searched, texts)
            written = [writer.prepare(message, marks) for message in messages]
            given = marks.protect({"tools": tools or None, "more": variables}, is_answer=False)
        except RecursionError as error:
            raise DataError("the messages nest too deeply: send flatter JSON") from error
        if continue_final:
            written[-1] = _leave_open(written[-1], marks)
        text = writer.program.run(
            {
                "documents": None,
                **given["more"],
                **self._variables,
                "messages": written,
                "tools": given["tools"],
                "add_generation_prompt": add_generation_prompt and not continue_final,
            }
        )
        return Prompt(marks.cut(_close(text, marks) if continue_final else text))


class _Writer:
    """One template of a model, and what it expects of messages."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.program = Program(source)
        self.searched = find_searched(self.program.tree)
        self._wants_objects = bool(_WANTS_OBJECTS.search(source) and not _TAKES_TEXT.search(source))

    def prepare(self, message: Mapping[str, Any], marks: Marks) -> dict[str, Any]:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise DataError("a message has no role: give user, assistant, system or tool")
        plain = {**message, "content": _join_parts(message.get("content"))}
        calls = message.get("tool_calls")
        if self._wants_objects and isinstance(calls, list | tuple):
            plain["tool_calls"] = [_parse_arguments(call) for call in calls]
        protected: dict[str, Any] = marks.protect(plain, is_answer=message["role"] == "assistant")
        return protected


def _join_parts(content: object) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise DataError(f"a message's content is {type(content).__name__}: give text")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(text, str):
            raise DataError(f"a message has a part of type {kind}: this model reads text only")
        texts.append(text)
    return "".join(texts)


def _parse_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise DataError("a tool call names no function: give its name and arguments")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"the arguments of a call of {function.get('name')} are not valid JSON ({error}):"
                " send them as the model wrote them"
            ) from error
    return {**call, "function": {**function, "arguments": arguments}}


def _leave_open(message: dict[str, Any], marks: Marks) -> dict[str, Any]:
    if not isinstance(message["content"], str):
        raise DataError("the last message has no text to continue: give it some, or start anew")
    return {**message, "content": f"{message['content']}{marks.end}"}


def _close(text: str, marks: Marks) -> str:
    before, found, _ = text.rpartition(marks.end)
    if not found:
        raise DataError("the chat template leaves out the last message: it cannot be continued")
    return before


def _find_sources(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return {"default": file.read_text(encoding="utf-8")}
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file}: cannot be read ({error}): restore it") from error
    beside = _read_if_present(folder / "chat_template.json").get("chat_template")
    found = settings.get("chat_template") if beside is None else beside
    if isinstance(found, str):
        return {"default": found}
    if not isinstance(found, list):
        return {}
    return {
        each["name"]: each["template"]
        for each in found
        if isinstance(each, dict) and isinstance(each.get("template"), str) and "name" in each
    }


def _token_names(settings: Mapping[str, Any]) -> dict[str, str]:
    names = {}
    for key, value in settings.items():
        content = value.get("content") if isinstance(value, Mapping) else value
        if key.endswith("_token") and isinstance(content, str):
            names[key] = content
    return names


def _special_names(tokenizer: Mapping[str, Any]) -> SpecialNames:
    added = tokenizer.get("added_tokens", [])
    return SpecialNames.read(token for token in added if isinstance(token, dict))


def _read_vocabulary(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return what tokenizer.json and tokenizer_config.json hold, or a GGUF file in their place."""
    if is_gguf(folder):
        found = read_vocabulary(GgufFile(folder))
        return json.loads(found.raw), found.settings
    names = ("tokenizer.json", "tokenizer_config.json")
    tokenizer, settings = (_read_if_present(folder / name) for name in names)
    return tokenizer, settings


def _read_if_present(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
