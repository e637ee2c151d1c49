"""What stands in a turn, a prompt, an input or an answer, in whatever dialect: texts, and the size
of images.

Next: asked.py.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

# What hosted models take for an image of usual size: 85 to 1,600 of them.
_TOKENS_PER_IMAGE = 1000
# As a rule.
_BYTES_PER_TOKEN = 4

# Where an image of each dialect has its bytes.
_HOLDERS = {"image_url": ("image_url", "url"), "image": ("source", "data")}


def flatten(content: object) -> str:
    """Return the text; token ids and images have none."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [
        part if isinstance(part, str) else part.get("text")
        for part in content
        if isinstance(part, str | dict)
    ]
    return "\n".join(text for text in texts if isinstance(text, str))


def estimate_tokens(num_bytes: int, contents: Iterator[object]) -> int:
    """Return about how many tokens a body of so many bytes has.

    An image's bytes say nothing of its tokens: each counts as one of usual size.
    """
    sizes = [size for content in contents for size in _image_bytes(content)]
    return (num_bytes - sum(sizes)) // _BYTES_PER_TOKEN + len(sizes) * _TOKENS_PER_IMAGE


def text_of(body: bytes) -> str:
    """Return what a whole answer's first choice says, nothing where it has none."""
    return next(iter(_texts_of(body)), "")


def count_answer_tokens(body: bytes) -> int:
    """Return about how many tokens a whole answer has, all its choices together."""
    texts = _texts_of(body)
    return max(len(texts), sum(map(len, texts)) // _BYTES_PER_TOKEN)


def _texts_of(body: bytes) -> list[str]:
    try:
        found: Any = msgspec.json.decode(body)
        if "choices" not in found:
            return ["".join(block.get("text", "") for block in found["content"])]
        return [_text_of_choice(choice) for choice in found["choices"]]
    except (msgspec.DecodeError, LookupError, TypeError, AttributeError):
        return []


def _text_of_choice(choice: Mapping[str, Any]) -> str:
    text = choice["message"].get("content") if "message" in choice else choice.get("text")
    return text if isinstance(text, str) else ""


def _image_bytes(content: object) -> Iterator[int]:
    """Yield how many bytes each image has in a body, as far as it can be told."""
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, dict):
            continue
        if part.get("type") == "tool_result":
            yield from _image_bytes(part.get("content"))
        elif part.get("type") in _HOLDERS:
            holder, field = _HOLDERS[part["type"]]
            held = part.get(holder)
            data = held.get(field) if isinstance(held, dict) else None
            yield len(data) if isinstance(data, str) else 0
