"""A request to Anthropic's /v1/messages, and the `ChatRequest` that it becomes.

Blocks become messages: tool results turns of their own, thinking the reasoning of its turn. Knows
no answers. Next: anthropic_answers.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Tag

from moestro.api.chat import (
    MOST_STOPS,
    ChatRequest,
    Content,
    Message,
    Options,
    Tool,
    ToolCall,
)
from moestro.api.dialect import (
    ExpertsField,
    Part,
    choose_tool,
    constrain,
    join,
    say,
    switch_thinking,
    write_json,
)
from moestro.api.images import ImageBlock, read_block
from moestro.api.openai_bodies import (
    MOST_MESSAGES,
    MOST_PARTS,
    MOST_TOOLS,
    Number,
    Stop,
    Whole,
    by_type,
)
from moestro.api.sampling import SamplingWish
from moestro.errors import ConfigError

_CHOICES: dict[str, Literal["auto", "none", "required", "named"]] = {
    "auto": "auto",
    "any": "required",
    "tool": "named",
    "none": "none",
}


def _as_blocks(value: Any) -> Any:  # noqa: ANN401 (whatever a caller sends)
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class TextBlock(Part):
    """Plain text."""

    type: Literal["text"]
    text: str


Texts = Annotated[
    list[TextBlock],
    Field(max_length=MOST_PARTS, fail_fast=True),
    BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock]),
]


Shown = Annotated[
    list[
        Annotated[
            Annotated[TextBlock, Tag("text")] | Annotated[ImageBlock, Tag("image")],
            by_type("text", "image"),
        ]
    ],
    Field(max_length=MOST_PARTS, fail_fast=True),
    BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock | ImageBlock]),
]


class ThinkingBlock(Part):
    """What the model thought in an earlier turn; the signature is not read."""

    type: Literal["thinking"]
    thinking: str


class RedactedThinkingBlock(Part):
    """Thoughts that only another server could read: left out."""

    type: Literal["redacted_thinking"]


class ToolUseBlock(Part):
    """A tool that the model called in an earlier turn."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(Part):
    """What a called tool returned."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Shown | None = None


Block = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ImageBlock, Tag("image")]
    | Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[RedactedThinkingBlock, Tag("redacted_thinking")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")],
    by_type("text", "image", "thinking", "redacted_thinking", "tool_use", "tool_result"),
]
Blocks = Annotated[
    list[Block],
    Field(max_length=MOST_PARTS, fail_fast=True),
    BeforeValidator(_as_blocks, json_schema_input_type=str | list[Block]),
]


class TurnParam(Part):
    """One turn of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: Blocks


class ToolParam(Part):
    """A tool of the caller's own; `input_schema` is a JSON schema."""

    type: str | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class ToolChoiceParam(Part):
    """Whether tools are used: `any` is one of them, `tool` the one called `name`."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingParam(Part):
    """Whether to think first; how much is the model's own choice."""

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]


class JsonFormat(Part):
    """A JSON schema that the answer keeps to."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(Part):
    """What the answer looks like."""

    format: JsonFormat | None = None


class CountRequest(Part):
    """A conversation, as /v1/messages/count_tokens takes it."""

    model: str | None = Field(None, description="May be left out where one model is served.")
    messages: list[TurnParam] = Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)
    system: Texts | None = None
    tools: Annotated[list[ToolParam], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoiceParam | None = None
    thinking: ThinkingParam | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountRequest):
    """A conversation to answer; `experts` is a field of ours."""

    max_tokens: Whole = Field(ge=1)
    stop_sequences: Annotated[list[Stop], Field(max_length=MOST_STOPS, fail_fast=True)] | None = (
        None
    )
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=0)] | None = None
    stream: bool | None = None
    experts: ExpertsField = None


def read_conversation(body: CountRequest, model: str) -> ChatRequest:
    """Return what the model sees, without any wish as to its answer."""
    tools = tuple(_tool(index, tool) for index, tool in enumerate(body.tools or ()))
    choice = body.tool_choice or ToolChoiceParam(type="auto")
    system = "\n".join(block.text for block in body.system or ())
    messages = [Message(role="system", content=system)] if system else []
    for turn in body.messages:
        messages += _messages(turn)
    thinking = body.thinking
    return ChatRequest(
        model=model,
        messages=tuple(messages),
        tools=tools,
        tool_choice=choose_tool(_CHOICES[choice.type], choice.name, tools),
        has_parallel_tool_calls=not choice.disable_parallel_tool_use,
        template_variables={} if thinking is None else switch_thinking(thinking.type != "disabled"),
        continues_final=_is_begun(body.messages[-1]),
    )


def _is_begun(last: TurnParam) -> bool:
    """Tell whether the conversation ends with the answer's beginning, which is to be gone on with.

    ConfigError where that is more than text: nobody can go on within a call or a thought.
    """
    if last.role != "assistant":
        return False
    others = [block.type for block in last.content if not isinstance(block, TextBlock)]
    if others or not last.content:
        what = f"a block of {others[0]}" if others else "nothing in it"
        raise ConfigError(
            f"messages end with an assistant's turn with {what}: only text can be continued, so end"
            " with text or with the user's turn"
        )
    return True


def read_messages(body: MessagesRequest, model: str) -> ChatRequest:
    """Return the request to answer; ConfigError if it asks for what cannot be."""
    output = body.output_config.format if body.output_config else None
    options = Options(
        max_tokens=body.max_tokens,
        stops=tuple(body.stop_sequences or ()),
        sampling=SamplingWish(temperature=body.temperature, top_p=body.top_p, top_k=body.top_k),
        constraint=None
        if output is None
        else constrain(output.json_schema, "output_config.format"),
        experts=body.experts,
    )
    return replace(read_conversation(body, model), options=options)


def _messages(turn: TurnParam) -> Iterator[Message]:
    if turn.role == "assistant":
        yield _assistant_message(turn.content)
        return
    shown: list[TextBlock | ImageBlock] = []
    for block in turn.content:
        if isinstance(block, TextBlock):
            shown.append(block)
        elif turn.role != "user":
            raise _misplaced(block, turn.role)
        elif isinstance(block, ImageBlock):
            shown.append(block)
        elif isinstance(block, ToolResultBlock):
            if shown:
                yield Message(role="user", content=_join(shown))
                shown = []
            content = _join(block.content or ())
            yield Message(role="tool", content=content, tool_call_id=block.tool_use_id)
        else:
            raise _misplaced(block, turn.role)
    if shown:
        yield Message(role=turn.role, content=_join(shown))


def _assistant_message(blocks: Sequence[Block]) -> Message:
    texts, thoughts, calls = [], [], []
    for block in blocks:
        if isinstance(block, TextBlock):
            texts.append(block)
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.thinking)
        elif isinstance(block, ToolUseBlock):
            arguments = write_json(block.input)
            calls.append(ToolCall(id=block.id, name=block.name, arguments=arguments))
        elif isinstance(block, ToolResultBlock | ImageBlock):
            raise _misplaced(block, "assistant")
    return Message(
        role="assistant",
        content=say(_join(texts), calls),
        reasoning="\n".join(thoughts) or None,
        tool_calls=tuple(calls),
    )


def _misplaced(block: Block, role: str) -> ConfigError:
    return ConfigError(f"a {block.type} block stands in a turn of {role}: it belongs to another")


def _join(blocks: Sequence[TextBlock | ImageBlock]) -> Content:
    return join(
        [block.text if isinstance(block, TextBlock) else read_block(block) for block in blocks],
        "\n",
    )


def _tool(index: int, tool: ToolParam) -> Tool:
    if tool.type not in (None, "custom"):
        raise ConfigError(
            f"tools[{index}] is of type {tool.type[:80]}, which this server does not run:"
            " give tools of your own, with an input_schema"
        )
    return Tool(
        name=tool.name, description=tool.description or "", parameters=tool.input_schema or {}
    )
