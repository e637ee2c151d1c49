"""A conversation's turns and tools in OpenAI's words, for chat templates and for other servers.

Next: openai_requests.py for the way in.
"""

from typing import Any

from moestro.api.chat import Message, Tool


def write_message(message: Message) -> dict[str, Any]:
    """Write a turn, its content even where it is null: templates tell turns of calls by that."""
    written: dict[str, Any] = {"role": message.role, "content": message.content}
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


def write_tool(tool: Tool) -> dict[str, Any]:
    """Write a function that may be called."""
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": dict(tool.parameters),
    }
    return {"type": "function", "function": function}
