"""A conversation's turns and tools in OpenAI's words, for chat templates and for other servers.

Next: openai_requests.py for the way in.
"""

from typing import Any

from moestro.api.chat import Content, Image, Message, Tool


def write_message(message: Message) -> dict[str, Any]:
    """Write a turn, its content even where it is null: templates tell turns of calls by that."""
    written: dict[str, Any] = {"role": message.role, "content": write_content(message.content)}
    optional = {
        "name": message.name,
        "reasoning_content": message.reasoning,
        "tool_call_id": message.tool_call_id,
    }
    written |= {name: value for name, value in optional.items() if value is not None}
    if message.tool_calls:
        written["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    return written


def write_content(content: Content | None) -> str | list[dict[str, Any]] | None:
    """Write what a turn says: parts only where one of them is an image."""
    if not isinstance(content, tuple):
        return content
    return [
        _write_image(part) if isinstance(part, Image) else {"type": "text", "text": part}
        for part in content
    ]


def _write_image(image: Image) -> dict[str, Any]:
    detail = {} if image.detail is None else {"detail": image.detail}
    return {"type": "image_url", "image_url": {"url": image.url} | detail}


def write_tool(tool: Tool) -> dict[str, Any]:
    """Write a function that may be called."""
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": dict(tool.parameters),
    }
    return {"type": "function", "function": function}
