"""This interpreter's own library, a corpus on every machine: Python, C headers, English prose.

Knows where Python keeps its files; nothing is imported or run. Next: corpus.py.
"""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from moestro.data.sources import Found, LeftOut, read_file, walk

NAMES = ("python", "python:stdlib")
# Other people's packages differ from machine to machine.
_SKIPPED = frozenset({"site-packages", "dist-packages"})
_TOPICS = Path("pydoc_data", "topics.py")


def read_stdlib() -> Iterator[Found | LeftOut]:
    """Give the library's sources, the headers beside them, and each topic of Python's manual."""
    library = Path(sysconfig.get_path("stdlib"))
    yield from _read_kind(library, ".py", "python")
    yield from _read_kind(Path(sysconfig.get_path("include")), ".h", "c")
    yield from read_topics(library / _TOPICS)


def read_topics(path: Path) -> Iterator[Found | LeftOut]:
    """Give the manual's topics: the strings of the dict that a topics.py assigns to `topics`."""
    name = _TOPICS.as_posix()
    try:
        tree = ast.parse(path.read_bytes())
        topics = next(
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value and _is_topics(node)
        )
        items = [(key, text) for key, text in topics.items() if isinstance(text, str)]
    except (OSError, SyntaxError, ValueError, AttributeError, StopIteration):
        yield LeftOut(name=name, reason="unreadable")
        return
    for key, text in items:
        yield Found(name=f"{name}:{key}", domain="prose", data=text.encode(errors="surrogatepass"))


def _is_topics(node: ast.Assign | ast.AnnAssign) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return any(isinstance(target, ast.Name) and target.id == "topics" for target in targets)


def _read_kind(root: Path, suffix: str, domain: str) -> Iterator[Found | LeftOut]:
    # A machine without Python's headers has no include folder; the walk is then empty.
    for item in walk(root, _SKIPPED):
        if isinstance(item, LeftOut):
            continue
        inside = item.relative_to(root)
        # The manual comes as prose; here it would be a second copy, perhaps across the split.
        if item.suffix == suffix and inside != _TOPICS:
            yield from read_file(item, f"{root.name}/{inside.as_posix()}", domain)
