"""Names: files say what they own, one word has one meaning, and code is ASCII.

Knows the banned words; docs/glossary.md has the good ones. Next: test_state.py.
"""

import ast
import io
import re
import tokenize
from collections import Counter
from pathlib import Path

from tests.rules.tree import CODE_FOLDERS, PACKAGE, ROOT, parse, python_files, where

BANNED_FILES = {"utils", "util", "common", "misc", "helpers", "helper", "manager", "base"}
OUTDATED = re.compile(r"_(v\d+|new|old)$")
# "router" could mean the gate or the policy; these are names that papers, checkpoints and FastAPI
# gave.
PUBLISHED = re.compile(r"router_(z|aux)_\w+|APIRouter|include_router")


def test_every_file_has_a_name_that_says_what_it_owns() -> None:
    assert not [
        where(path, 1)
        for path in python_files(*CODE_FOLDERS)
        if path.stem in BANNED_FILES or OUTDATED.search(path.stem)
    ]


def test_packages_re_export_nothing() -> None:
    inits = [path for path in python_files("moestro") if path.name == "__init__.py"]
    assert not [where(path, 1) for path in inits if path.parent != PACKAGE and path.read_bytes()]


def test_nothing_is_deeper_than_one_folder() -> None:
    assert not [
        where(path, 1)
        for path in python_files("moestro")
        if len(path.relative_to(PACKAGE).parts) > 2
    ]


def test_no_identifier_says_router() -> None:
    assert not [
        f"{where(path, token.start[0])} {token.string}"
        for path in python_files("moestro")
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
        if token.type == tokenize.NAME
        and "router" in token.string.lower()
        and not PUBLISHED.fullmatch(token.string)
    ]


def test_a_public_class_shares_its_name_with_one_other_at_most() -> None:
    classes = Counter(
        node.name
        for path in python_files("moestro")
        for node in parse(path).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not [name for name, number in classes.items() if number > 2]


def test_code_is_ascii() -> None:
    assert not [
        where(path, number)
        for path in python_files(*CODE_FOLDERS)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if not line.isascii()
    ]


def test_every_module_opens_with_a_docstring_that_names_the_next_file() -> None:
    missing = []
    for path in python_files("moestro"):
        docstring = docstring_of(path)
        is_package = path.name == "__init__.py"
        if not is_package and (docstring is None or "Next:" not in docstring):
            missing.append(where(path, 1))
    assert not missing


def test_every_next_file_exists() -> None:
    lost = []
    known = {path.relative_to(ROOT).as_posix() for path in python_files("moestro")}
    for path in python_files("moestro"):
        _, _, after = (docstring_of(path) or "").partition("Next:")
        for name in re.findall(r"[\w/]+\.py", after):
            if not any(f"/{other}".endswith(f"/{name}") for other in known):
                lost.append(f"{where(path, 1)} {name}")
    assert not lost


def test_every_test_file_opens_with_a_docstring() -> None:
    scripts = python_files("tests", "benchmarks", "examples")
    assert not [where(path, 1) for path in scripts if path.read_bytes() and not docstring_of(path)]


def docstring_of(path: Path) -> str | None:
    return ast.get_docstring(parse(path))
