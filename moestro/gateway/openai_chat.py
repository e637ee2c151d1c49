"""The shape of OpenAI's chats, as far as another dialect can say it too.

Next: anthropic.py.
"""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from moestro.errors import ConfigError


class ImageUrl(msgspec.Struct):
    """Where an image is, or its bytes."""

    url: str


class Part(msgspec.Struct):
    """A part of a turn's content."""

    type: str
    text: str | None = None
    image_url: ImageUrl | None = None


class CalledFunction(msgspec.Struct):
    """What a model called; its arguments are JSON."""

    name: str
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    """A call of a tool."""

    function: CalledFunction
    id: str | None = None


class Turn(msgspec.Struct):
    """One message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: Any = None


class Function(msgspec.Struct):
    """What a model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(msgspec.Struct):
    """A tool: functions are the only ones."""

    function: Function


class NamedFunction(msgspec.Struct):
    """A function by its name."""

    name: str


class ToolChoice(msgspec.Struct):
    """The one tool to call."""

    function: NamedFunction


class Schema(msgspec.Struct):
    """A form for an answer."""

    schema: dict[str, Any] | None = None


class Format(msgspec.Struct):
    """What an answer must look like."""

    type: str
    json_schema: Schema | None = None


class Chat(msgspec.Struct):
    """A chat's body; what is not named here is not looked at."""

    messages: list[Turn]
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    stop: str | list[str] | None = None
    user: str | None = None
    tools: list[Tool] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: Format | None = None


def read_chat(said: Mapping[str, Any]) -> Chat:
    """Read a chat's body; ConfigError that names the field which is something else."""
    try:
        return msgspec.convert(said, Chat)
    except msgspec.ValidationError as error:
        what, _, where = str(error).replace("`", "").partition(" - at $.")
        raise ConfigError(f"{where or 'the body'}: {what[:1].lower()}{what[1:]}") from error
