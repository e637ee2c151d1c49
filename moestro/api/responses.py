"""A request to OpenAI's /v1/responses, and the `ChatRequest` that it becomes.

Items become messages: thoughts and function calls join the assistant's turn that they belong to.
Nothing is kept here from one request to the next. Knows no answers. Next: responses_answers.py.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from moestro.api.chat import (
    MOST_TOP_LOGPROBS,
    ChatRequest,
    Constraint,
    Content,
    Message,
    Options,
    Tool,
    ToolCall,
    ToolChoice,
)
from moestro.api.dialect import (
    ExpertsField,
    Part,
    allow_tools,
    ask_effort,
    choose_tool,
    constrain,
    join,
    say,
)
from moestro.api.images import InputImage, read_input
from moestro.api.openai_bodies import MOST_MESSAGES, MOST_PARTS, MOST_TOOLS, Number, Whole, by_type
from moestro.api.sampling import SamplingWish
from moestro.errors import ConfigError

MOST_INCLUDED = 64
MOST_METADATA = 16
_LOGPROBS = "message.output_text.logprobs"


def _as_parts(value: Any) -> Any:  # noqa: ANN401 (whatever a caller sends)
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


class TextPart(Part):
    """Plain text, of whoever says it."""

    type: Literal["input_text", "output_text", "reasoning_text", "summary_text", "text"]
    text: str


def _tag(value: Any) -> str:  # noqa: ANN401 (whatever a caller sends)
    # The types of text are many, and what is none of them is told so by theirs.
    found = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "input_image" if found == "input_image" else "input_text"


PlainParts = Annotated[list[TextPart], Field(max_length=MOST_PARTS, fail_fast=True)]
Shown = Annotated[
    Annotated[TextPart, Tag("input_text")] | Annotated[InputImage, Tag("input_image")],
    Discriminator(_tag),
]
Parts = Annotated[
    list[Shown],
    Field(max_length=MOST_PARTS, fail_fast=True),
    BeforeValidator(_as_parts, json_schema_input_type=str | list[TextPart | InputImage]),
]


class MessageItem(Part):
    """One turn of the conversation."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts


class CallItem(Part):
    """A function that the model called in an earlier turn."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class CallOutputItem(Part):
    """What a called function returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: Parts


class ReasoningItem(Part):
    """What the model thought in an earlier turn; encrypted thoughts are not read."""

    type: Literal["reasoning"]
    content: PlainParts | None = None
    summary: PlainParts | None = None


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    by_type("message", "function_call", "function_call_output", "reasoning"),
]


def _as_items(value: Any) -> Any:  # noqa: ANN401 (whatever a caller sends)
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


Items = Annotated[
    list[Item],
    Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True),
    BeforeValidator(_as_items, json_schema_input_type=str | list[Item]),
]


def _check_metadata(value: Any) -> Any:  # noqa: ANN401 (whatever a caller sends)
    if isinstance(value, dict) and len(value) > MOST_METADATA:
        raise ValueError(f"metadata has {len(value)} entries, limit {MOST_METADATA}: send fewer")
    return value


class FunctionParam(Part):
    """A function of the caller's own; `parameters` is a JSON schema."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedChoice(Part):
    """A function by its name."""

    type: str
    name: str | None = None


class ChosenTools(NamedChoice):
    """The function called `name` must be used, or of some `tools` none or one, as `mode` says."""

    mode: Literal["auto", "required"] | None = None
    tools: Annotated[list[NamedChoice], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None


class TextFormat(Part):
    """What the text looks like."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")


class TextConfig(Part):
    """How the text is written."""

    format: TextFormat | None = None


class ReasoningConfig(Part):
    """How much to think first, for the model's template to read; "none" is not at all."""

    effort: str | None = None


class ResponsesRequest(Part):
    """A conversation to answer; `experts` is a field of ours."""

    model: str | None = Field(None, description="May be left out where one model is served.")
    input: Items
    instructions: str | None = None
    tools: Annotated[list[FunctionParam], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = (
        None
    )
    tool_choice: Literal["auto", "none", "required"] | ChosenTools | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    max_output_tokens: Annotated[Whole, Field(ge=1)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    include: Annotated[list[str], Field(max_length=MOST_INCLUDED, fail_fast=True)] | None = None
    metadata: Annotated[dict[str, str], BeforeValidator(_check_metadata)] | None = None
    user: str | None = None
    stream: bool | None = None
    store: bool | None = Field(None, description="Nothing is kept, whatever is asked.")
    previous_response_id: str | None = Field(None, description="Refused: nothing is kept.")
    conversation: Any = Field(None, description="Refused: nothing is kept.")
    background: bool | None = Field(None, description="Only false: nothing is kept.")
    prompt: Any = Field(None, description="Refused: there are no stored prompts.")
    experts: ExpertsField = None


def read_responses(body: ResponsesRequest, model: str) -> ChatRequest:
    """Return the request to answer; ConfigError if it asks for what cannot be."""
    _check_nothing_kept(body)
    tools = tuple(_tool(index, tool) for index, tool in enumerate(body.tools or ()))
    tool_choice, allowed = _tool_choice(body.tool_choice, tools)
    effort = body.reasoning.effort if body.reasoning else None
    return ChatRequest(
        model=model,
        messages=tuple(_messages(body)),
        tools=allowed,
        tool_choice=tool_choice,
        has_parallel_tool_calls=body.parallel_tool_calls is not False,
        template_variables=ask_effort(effort),
        options=Options(
            max_tokens=body.max_output_tokens,
            sampling=SamplingWish(temperature=body.temperature, top_p=body.top_p),
            constraint=_constraint(body.text.format if body.text else None),
            top_logprobs=_top_logprobs(body),
            experts=body.experts,
        ),
    )


def _check_nothing_kept(body: ResponsesRequest) -> None:
    kept = {
        "previous_response_id": body.previous_response_id,
        "conversation": body.conversation,
        "prompt": body.prompt,
        "background": body.background or None,
    }
    for name, value in kept.items():
        if value is not None:
            raise ConfigError(
                f"{name} is given, but this server keeps nothing between requests: leave it out"
                " and send the whole conversation as input",
                param=name,
            )


def _messages(body: ResponsesRequest) -> list[Message]:
    messages = []
    if body.instructions:
        messages.append(Message(role="system", content=body.instructions))
    thoughts = ""
    for item in body.input:
        if isinstance(item, ReasoningItem):
            thoughts = "".join(part.text for part in item.content or item.summary or ())
        elif isinstance(item, CallOutputItem):
            content = _join(item.output)
            messages.append(Message(role="tool", content=content, tool_call_id=item.call_id))
        elif isinstance(item, CallItem):
            call = ToolCall(id=item.call_id, name=item.name, arguments=item.arguments)
            _add_call(messages, call, thoughts)
            thoughts = ""
        else:
            role = "system" if item.role == "developer" else item.role
            reasoning = thoughts if role == "assistant" else ""
            messages.append(
                Message(role=role, content=_join(item.content), reasoning=reasoning or None)
            )
            thoughts = ""
    if not any(message.role != "system" for message in messages):
        raise ConfigError(
            "input has nothing to answer: send at least one message of the user", param="input"
        )
    return messages


def _add_call(messages: list[Message], call: ToolCall, thoughts: str) -> None:
    latest = messages[-1] if messages else None
    if latest is not None and latest.role == "assistant" and not thoughts:
        calls = (*latest.tool_calls, call)
        messages[-1] = replace(latest, content=say(latest.content or "", calls), tool_calls=calls)
    else:
        messages.append(Message(role="assistant", reasoning=thoughts or None, tool_calls=(call,)))


def _join(parts: Sequence[TextPart | InputImage]) -> Content:
    return join([part.text if isinstance(part, TextPart) else read_input(part) for part in parts])


def _tool(index: int, tool: FunctionParam) -> Tool:
    if tool.type != "function":
        raise ConfigError(
            f"tools[{index}] is of type {tool.type[:80]}, which this server does not run:"
            " give tools of type function",
            param="tools",
        )
    if tool.name is None:
        raise ConfigError(f"tools[{index}] has no name: give it one", param="tools")
    return Tool(
        name=tool.name, description=tool.description or "", parameters=tool.parameters or {}
    )


def _tool_choice(
    choice: Literal["auto", "none", "required"] | ChosenTools | None, tools: tuple[Tool, ...]
) -> tuple[ToolChoice, tuple[Tool, ...]]:
    if not isinstance(choice, ChosenTools):
        return choose_tool(choice or "auto", None, tools), tools
    if choice.type == "allowed_tools":
        if choice.tools is None:
            raise ConfigError(
                "tool_choice of type allowed_tools has no tools: name some", param="tool_choice"
            )
        names = [_function_name(each) for each in choice.tools]
        return allow_tools(choice.mode or "auto", names, tools)
    return choose_tool("named", _function_name(choice), tools), tools


def _function_name(choice: NamedChoice) -> str:
    if choice.type != "function":
        raise ConfigError(
            f"tool_choice is of type {choice.type[:80]}, which this server does not know:"
            " give auto, none, required, a function or allowed_tools of functions",
            param="tool_choice",
        )
    return choice.name or ""


def _constraint(form: TextFormat | None) -> Constraint | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return Constraint(kind="json_object")
    if form.json_schema is None:
        raise ConfigError(
            "text.format is of type json_schema, but has no schema: add it", param="text.format"
        )
    return constrain(form.json_schema, "text.format")


def _top_logprobs(body: ResponsesRequest) -> int | None:
    if body.top_logprobs or _LOGPROBS in (body.include or ()):
        return body.top_logprobs or 0
    return None
