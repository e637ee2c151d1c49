"""The source tree as the rules see it: which files there are, and what a Python file holds.

Knows no rule. Next: test_size.py.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "moestro"
CODE_FOLDERS = ("moestro", "tests", "benchmarks", "examples")
# What this project's tools and runs leave behind; see .gitignore.
_PRODUCTS = {"build", "dist", "runs", "__pycache__"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def find_files(folder: Path, pattern: str) -> list[Path]:
    """List the files that belong to the project, hidden folders and products left out."""
    found = []
    for path in sorted(folder.rglob(pattern)):
        folders = path.relative_to(ROOT).parts[:-1]
        if path.is_file() and not any(part in _PRODUCTS or part[0] == "." for part in folders):
            found.append(path)
    return found


def python_files(*folders: str) -> list[Path]:
    """List the Python files below folders of the repository."""
    return [path for folder in folders for path in find_files(ROOT / folder, "*.py")]


@cache
def parse(path: Path) -> ast.Module:
    """Read a Python file as a syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def functions(module: ast.Module) -> Iterator[Function]:
    """Yield every function and method, nested ones included."""
    return (node for node in ast.walk(module) if isinstance(node, Function))


def where(path: Path, line: int) -> str:
    """Name a place as editors do."""
    return f"{path.relative_to(ROOT)}:{line}"
