"""Whether OpenAI's words can say all that a request to /v1/messages asks: then nothing is lost.

What is named here is carried by api/anthropic.py and gateway/writing.py one way, and by
gateway/anthropic.py the other. Thoughts, caches, documents, tools that a server runs, and whatever
is not known here, are not. Next: gateway.py.
"""

from typing import Any, Literal

import msgspec

from moestro.gateway.asked import Asked


class _Text(msgspec.Struct, tag="text", forbid_unknown_fields=True):
    text: str


class _Base64(msgspec.Struct, tag="base64", forbid_unknown_fields=True):
    media_type: str
    data: str


class _Url(msgspec.Struct, tag="url", forbid_unknown_fields=True):
    url: str


class _Image(msgspec.Struct, tag="image", forbid_unknown_fields=True):
    source: _Base64 | _Url


class _ToolUse(msgspec.Struct, tag="tool_use", forbid_unknown_fields=True):
    id: str
    name: str
    input: dict[str, Any]


class _ToolResult(msgspec.Struct, tag="tool_result", forbid_unknown_fields=True):
    tool_use_id: str
    content: str | list[_Text | _Image] | None = None


class _Turn(msgspec.Struct, forbid_unknown_fields=True):
    role: Literal["user", "assistant"]
    content: str | list[_Text | _Image | _ToolUse | _ToolResult]


class _Tool(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None


class _Choice(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _NoThinking(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["disabled"]


class _Format(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class _Output(msgspec.Struct, forbid_unknown_fields=True):
    format: _Format | None = None


class _Messages(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    max_tokens: int
    messages: list[_Turn]
    system: str | list[_Text] | None = None
    tools: list[_Tool] | None = None
    tool_choice: _Choice | None = None
    thinking: _NoThinking | None = None
    output_config: _Output | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stream: bool | None = None
    experts: Any = None
    # Says who asks, and changes no answer.
    metadata: Any = None


_read = msgspec.json.Decoder(_Messages).decode


def is_translatable(asked: Asked) -> bool:
    """Tell whether a request says nothing that would be lost on the way."""
    if asked.headers:
        # What a client switches on by a header is known to its own dialect only.
        return False
    try:
        _read(asked.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
