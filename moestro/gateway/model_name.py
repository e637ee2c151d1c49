"""Whether two names mean one model: servers add a folder, a date or a tag to what they are asked.

Next: attempts.py.
"""

import re
from dataclasses import dataclass

# gpt-4-0613, gpt-4o-2024-08-06, claude-3-haiku-20240307, command-r-08-2024, gemini-1.5-pro-002.
_DATE = re.compile(r"-(\d{3,8}|\d{4}-\d\d-\d\d|\d\d-\d{4}|latest)$")


@dataclass(frozen=True)
class _Name:
    folder: str
    name: str
    date: str
    tag: str


def is_same_model(said: object, asked: str) -> bool:
    """Tell whether names agree, but for a folder, a date or a tag that one of them lacks.

    What says none disagrees with none.
    """
    if not (said and isinstance(said, str)):
        return True
    one, other = _read(said), _read(asked)
    return (
        one.name == other.name
        and _agree(one.folder, other.folder)
        and _agree(one.date, other.date)
        and _agree(one.tag, other.tag)
    )


def _read(text: str) -> _Name:
    # llama.cpp's server says the path of its file.
    folder, _, name = text.lower().removesuffix(".gguf").rpartition("/")
    name, _, tag = name.replace("@", ":").partition(":")
    found = _DATE.search(name)
    date = found[1] if found else ""
    return _Name(folder, name[: found.start()] if found else name, date, tag)


def _agree(one: str, other: str) -> bool:
    return one == other or not {"", "latest"}.isdisjoint((one, other))
