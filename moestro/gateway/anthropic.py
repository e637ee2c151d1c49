"""An upstream that speaks Anthropic's dialect, asked in OpenAI's words: the body that it gets.

Pure. What its dialect cannot say is a mistake of whoever asks for it. Next: anthropic_answers.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from moestro.errors import ConfigError

# Its dialect wants a limit, OpenAI's has none.
_MAX_TOKENS = 4096
_SAME = ("temperature", "top_p", "top_k", "stream")
_CHOICES = {"auto": "auto", "none": "none", "required": "any"}

Body = dict[str, Any]


def write_messages(said: Mapping[str, Any], model: str) -> Body:
    """Return a chat's body as one of /v1/messages; ConfigError for what that cannot ask."""
    for name, plain in (("n", (None, 1)), ("logprobs", (None, False))):
        if said.get(name) not in plain:
            raise ConfigError(f"{name} is {said[name]}: the model {model} does not take it")
    system, turns = _split_turns(said.get("messages") or ())
    limit = said.get("max_completion_tokens") or said.get("max_tokens") or _MAX_TOKENS
    body: Body = {"model": model, "max_tokens": limit, "messages": turns}
    body |= {name: said[name] for name in _SAME if said.get(name) is not None}
    stop = said.get("stop")
    if stop:
        body["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    if system:
        body["system"] = system
    if said.get("user"):
        body["metadata"] = {"user_id": said["user"]}
    return body | _write_tools(said) | _write_format(said)


def _split_turns(messages: Sequence[Any]) -> tuple[str, list[Body]]:
    system: list[str] = []
    turns: list[Body] = []
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role in ("system", "developer"):
            system += [block["text"] for block in _write_content(content)]
            continue
        speaker = "assistant" if role == "assistant" else "user"
        blocks = _write_turn(message)
        # Results of several tools are one turn there.
        if turns and turns[-1]["role"] == speaker:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": speaker, "content": blocks})
    return "\n\n".join(system), turns


def _write_turn(message: Mapping[str, Any]) -> list[Body]:
    blocks = _write_content(message.get("content"))
    if message.get("role") == "tool":
        tool_id = message.get("tool_call_id", "")
        return [{"type": "tool_result", "tool_use_id": tool_id, "content": blocks}]
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        blocks.append(
            {
                "type": "tool_use",
                "id": call.get("id", ""),
                "name": function.get("name", ""),
                "input": _read_arguments(function.get("arguments")),
            }
        )
    return blocks


def _write_content(content: object) -> list[Body]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return [_write_part(part) for part in content] if isinstance(content, list) else []


def _write_part(part: Mapping[str, Any]) -> Body:
    if part.get("type") == "text":
        return {"type": "text", "text": part.get("text", "")}
    if part.get("type") != "image_url":
        raise ConfigError(f"a message has a part of type {part.get('type')}: send text or images")
    url = str((part.get("image_url") or {}).get("url", ""))
    if not url.startswith("data:"):
        return {"type": "image", "source": {"type": "url", "url": url}}
    kind, _, data = url.removeprefix("data:").partition(";base64,")
    return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}


def _read_arguments(arguments: object) -> Any:  # noqa: ANN401 (whatever a model wrote)
    try:
        return msgspec.json.decode(str(arguments or "{}"))
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError("the arguments of a tool's call are no JSON: send what came") from error


def _write_tools(said: Mapping[str, Any]) -> Body:
    tools = [tool.get("function") or {} for tool in said.get("tools") or ()]
    if not tools:
        return {}
    written: Body = {
        "tools": [
            {
                "name": tool.get("name", ""),
                "description": tool.get("description") or "",
                "input_schema": tool.get("parameters") or {"type": "object"},
            }
            for tool in tools
        ]
    }
    choice = said.get("tool_choice")
    chosen: Body = {}
    if isinstance(choice, str) and choice in _CHOICES:
        chosen = {"type": _CHOICES[choice]}
    elif isinstance(choice, dict):
        chosen = {"type": "tool", "name": (choice.get("function") or {}).get("name", "")}
    if said.get("parallel_tool_calls") is False:
        chosen = {"type": "auto"} | chosen | {"disable_parallel_tool_use": True}
    return written | ({"tool_choice": chosen} if chosen else {})


def _write_format(said: Mapping[str, Any]) -> Body:
    wanted = said.get("response_format") or {}
    if wanted.get("type") != "json_schema":
        return {}
    schema = (wanted.get("json_schema") or {}).get("schema") or {}
    return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
