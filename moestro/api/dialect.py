"""What the dialects of requests have in common: strict parts, turns of calls, choice of tools.

Knows no dialect's words. Next: anthropic.py, responses.py.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from moestro.api.chat import Constraint, Content, Image, Tool, ToolCall, ToolChoice
from moestro.api.openai_bodies import Number
from moestro.errors import ConfigError

T = TypeVar("T")

ExpertsField = Annotated[
    Annotated[Number, Field(gt=0)] | Literal["min", "auto"] | None,
    Field(
        description="Mean number of routed experts per token, within the model's limits; `min`"
        " takes the fewest, `auto` what the load allows."
    ),
]


class Part(BaseModel):
    """A part of a request: its own types only, finite numbers only, unknown fields passed over."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())


def choose_tool(
    mode: Literal["auto", "none", "required", "named"], name: str | None, tools: Sequence[Tool]
) -> ToolChoice:
    """Return the choice; ConfigError if there is no tool that it could mean."""
    if mode in ("auto", "none"):
        return ToolChoice(mode=mode)
    if not tools:
        raise ConfigError(
            "tool_choice asks for a tool, but there are no tools: send tools", param="tool_choice"
        )
    if mode == "required":
        return ToolChoice(mode=mode)
    if name is None or name not in {tool.name for tool in tools}:
        raise ConfigError(
            f"tool_choice names {str(name)[:60]!r}: choose one of tools", param="tool_choice"
        )
    return ToolChoice(mode=mode, name=name)


def allow_tools(
    mode: Literal["auto", "required"], names: Sequence[str], tools: Sequence[Tool]
) -> tuple[ToolChoice, tuple[Tool, ...]]:
    """Return the choice and the tools that are named, which are all that a model is told of."""
    for name in names:
        if name not in {tool.name for tool in tools}:
            raise ConfigError(
                f"tool_choice allows {name[:60]!r}: choose among tools", param="tool_choice"
            )
    allowed = tuple(tool for tool in tools if tool.name in names)
    return choose_tool(mode, None, allowed), allowed


def constrain(schema: Mapping[str, Any], param: str) -> Constraint:
    """Return what keeps an answer to the JSON schema in a field."""
    return Constraint(kind="json_schema", source=write_json(schema), param=param)


def join(parts: Sequence[str | Image], between: str = "") -> Content:
    """Return a turn's content: one text, unless there is an image among its parts."""
    texts = [part for part in parts if isinstance(part, str)]
    return between.join(texts) if len(texts) == len(parts) else tuple(parts)


def say(content: Content, calls: Sequence[ToolCall]) -> Content | None:
    """Return an assistant's words: None where it said nothing and only called tools."""
    return content or (None if calls else "")


def switch_thinking(is_on: bool) -> dict[str, bool]:
    """Return the template variables that make a model think first, or not."""
    # DeepSeek's templates read the one name, Qwen's and most others' the other.
    return {"thinking": is_on, "enable_thinking": is_on}


def ask_effort(effort: str | None) -> dict[str, bool | str]:
    """Return the template variables of a wish as to how much to think; "none" is not at all."""
    if effort is None:
        return {}
    return switch_thinking(effort != "none") | {"reasoning_effort": effort}


def write_json(value: Mapping[str, Any]) -> str:
    """Write JSON text; unlike Python's own writer it can nest as deep as what was read."""
    return msgspec.json.encode(value).decode()


def given(value: T | None, default: T) -> T:
    """Return a field's value, or the default where it is null or absent."""
    return default if value is None else value
