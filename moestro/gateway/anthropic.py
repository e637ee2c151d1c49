"""An upstream that speaks Anthropic's dialect, asked in OpenAI's words: the body that it gets.

Pure. What its dialect cannot say is a mistake of whoever asks for it, if it changes the answer;
what promises nothing, like `seed`, `store` or `prediction`, is left out. Next: openai_chat.py,
anthropic_answers.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from moestro.errors import ConfigError
from moestro.gateway.openai_chat import Chat, Part, Tool, Turn, read_chat

# Its dialect wants a limit, OpenAI's has none.
_MAX_TOKENS = 4096
_HOTTEST = 1.0
_SAME = ("temperature", "top_p", "top_k", "stream")
_CHOICES = {"auto": "auto", "none": "none", "required": "any"}
# What it has no words for, and the values of it that change nothing.
_UNKNOWN: Mapping[str, tuple[object, ...]] = {
    "n": (None, 1),
    "logprobs": (None, False),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None, "none", "minimal"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "web_search_options": (None,),
    "structured_outputs": (None, {}),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
}

Body = dict[str, Any]


def write_messages(said: Mapping[str, Any], model: str) -> Body:
    """Return a chat's body as one of /v1/messages; ConfigError for what that cannot ask."""
    chat = read_chat(said)
    for name, plain in _UNKNOWN.items():
        if said.get(name) not in plain:
            shown = str(said[name])[:60]
            raise ConfigError(
                f"{name} is {shown}: the model {model} does not take it, leave it out"
            )
    if chat.temperature is not None and chat.temperature > _HOTTEST:
        raise ConfigError(f"temperature is {chat.temperature}: the model {model} takes 0 to 1")
    system, turns = _split_turns(chat.messages)
    body: Body = {"model": model, "max_tokens": _read_limit(chat, model), "messages": turns}
    body |= {name: said[name] for name in _SAME if said.get(name) is not None}
    if chat.stop:
        body["stop_sequences"] = [chat.stop] if isinstance(chat.stop, str) else chat.stop
    if system:
        body["system"] = system
    if chat.user:
        body["metadata"] = {"user_id": chat.user}
    return body | _write_tools(chat) | _write_format(chat, model)


def _read_limit(chat: Chat, model: str) -> int:
    for name in ("max_completion_tokens", "max_tokens"):
        limit: int | None = getattr(chat, name)
        if limit is not None and limit < 1:
            raise ConfigError(f"{name} is {limit}: the model {model} takes 1 or more")
        if limit is not None:
            return limit
    return _MAX_TOKENS


def _split_turns(messages: Sequence[Turn]) -> tuple[str, list[Body]]:
    system: list[str] = []
    turns: list[Body] = []
    for number, turn in enumerate(messages):
        place = f"messages[{number}]"
        blocks = _write_content(turn.content, place)
        if turn.role in ("system", "developer"):
            system += [_read_text(block, place) for block in blocks]
            continue
        speaker = "assistant" if turn.role == "assistant" else "user"
        blocks = _write_turn(turn, blocks, place)
        # Results of several tools are one turn there.
        if turns and turns[-1]["role"] == speaker:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": speaker, "content": blocks})
    return "\n\n".join(system), turns


def _read_text(block: Body, place: str) -> str:
    if block["type"] != "text":
        raise ConfigError(f"{place}.content has an image: send it in a user's turn")
    return str(block["text"])


def _write_turn(turn: Turn, blocks: list[Body], place: str) -> list[Body]:
    if turn.function_call is not None:
        raise ConfigError(f"{place}.function_call is not known here: send tool_calls")
    if turn.role == "tool":
        tool_id = turn.tool_call_id or ""
        return [{"type": "tool_result", "tool_use_id": tool_id, "content": blocks}]
    calls = [
        {
            "type": "tool_use",
            "id": call.id or "",
            "name": call.function.name,
            "input": _read_arguments(call.function.arguments, f"{place}.tool_calls[{number}]"),
        }
        for number, call in enumerate(turn.tool_calls or ())
    ]
    return blocks + calls


def _write_content(content: str | list[Part] | None, place: str) -> list[Body]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return [
        _write_part(part, f"{place}.content[{number}]") for number, part in enumerate(content or ())
    ]


def _write_part(part: Part, place: str) -> Body:
    if part.type == "text":
        return {"type": "text", "text": part.text or ""}
    if part.type != "image_url":
        raise ConfigError(f"{place} has a part of type {part.type[:60]}: send text or images")
    url = part.image_url.url if part.image_url is not None else ""
    if not url.startswith("data:"):
        return {"type": "image", "source": {"type": "url", "url": url}}
    kind, is_base64, data = url.removeprefix("data:").partition(";base64,")
    if not is_base64:
        raise ConfigError(f"{place}.image_url.url has its data in other words: send it in base64")
    return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}


def _read_arguments(arguments: str | None, place: str) -> Body:
    try:
        said = msgspec.json.decode(arguments or "{}", type=Body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(
            f"{place}.function.arguments are no JSON object: send what came"
        ) from error
    return said


def _write_tools(chat: Chat) -> Body:
    if not chat.tools:
        return {}
    written: Body = {"tools": [_write_tool(tool) for tool in chat.tools]}
    choice = chat.tool_choice
    chosen: Body = {}
    if isinstance(choice, str):
        if choice not in _CHOICES:
            known = ", ".join(_CHOICES)
            raise ConfigError(f"tool_choice is {choice[:60]}: send one of {known}, or a function")
        chosen = {"type": _CHOICES[choice]}
    elif choice is not None:
        chosen = {"type": "tool", "name": choice.function.name}
    if chat.parallel_tool_calls is False:
        chosen = {"type": "auto"} | chosen | {"disable_parallel_tool_use": True}
    return written | ({"tool_choice": chosen} if chosen else {})


def _write_tool(tool: Tool) -> Body:
    return {
        "name": tool.function.name,
        "description": tool.function.description or "",
        "input_schema": tool.function.parameters or {"type": "object"},
    }


def _write_format(chat: Chat, model: str) -> Body:
    wanted = chat.response_format
    if wanted is None or wanted.type == "text":
        return {}
    if wanted.type != "json_schema" or wanted.json_schema is None:
        raise ConfigError(
            f"response_format is {wanted.type[:60]}: the model {model} takes a json_schema"
        )
    schema = wanted.json_schema.schema or {}
    return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
