"""What stands in a turn, a prompt or an input, in whatever dialect: its text, and its images' size.

Next: asked.py.
"""

from collections.abc import Iterator

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
