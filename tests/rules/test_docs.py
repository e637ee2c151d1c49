"""Documents that cannot rot: tours name code that exists, links lead somewhere, no path is private.

Knows Markdown by pattern only. Next: test_dependencies.py.
"""

import ast
import re
from pathlib import Path

import pytest

from tests.rules.tree import CODE_FOLDERS, PACKAGE, ROOT, find_files, parse, python_files, where

TOURS = ("docs/token.md", "docs/request.md")
STEP = re.compile(r"`([\w/]+\.py)::([\w.]+)")
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")
PRIVATE_PATH = re.compile(
    r"(?<![\w.:/])/(home|root|users|work|mnt|media|scratch)/\w", re.IGNORECASE
)


def test_every_step_of_a_tour_exists() -> None:
    tours = [ROOT / tour for tour in TOURS if (ROOT / tour).exists()]
    assert not [
        f"{where(tour, 1)} {name}::{symbol}"
        for tour in tours
        for name, symbol in STEP.findall(tour.read_text())
        if not is_defined(PACKAGE / name, symbol)
    ]


def test_every_tour_has_steps() -> None:
    tours = [ROOT / tour for tour in TOURS if (ROOT / tour).exists()]
    assert not [where(tour, 1) for tour in tours if len(STEP.findall(tour.read_text())) < 5]


@pytest.mark.parametrize(
    ("symbol", "is_there"),
    [("is_defined", True), ("TOURS", True), ("Path", False), ("is_defined.inner", False)],
)
def test_a_step_must_be_defined_where_the_tour_says(symbol: str, is_there: bool) -> None:
    assert is_defined(Path(__file__), symbol) == is_there


def test_every_link_in_the_documents_leads_to_a_file() -> None:
    assert not [
        f"{where(page, 1)} {target}"
        for page in find_files(ROOT, "*.md")
        for target in LINK.findall(page.read_text())
        if not (page.parent / target).exists()
    ]


def test_nothing_names_a_path_of_somebodys_machine() -> None:
    texts = [path for pattern in ("*.md", "*.toml", "*.txt") for path in find_files(ROOT, pattern)]
    texts += [ROOT / "Makefile", ROOT / ".ci" / "run", *python_files(*CODE_FOLDERS)]
    assert not [
        where(path, number)
        for path in texts
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if PRIVATE_PATH.search(line)
    ]


def is_defined(path: Path, symbol: str) -> bool:
    if not path.exists():
        return False
    body: list[ast.stmt] = parse(path).body
    for name in symbol.split("."):
        found = [node for node in body if name in defined_names(node)]
        if not found:
            return False
        body = found[0].body if isinstance(found[0], ast.ClassDef) else []
    return True


def defined_names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []
