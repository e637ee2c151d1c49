"""Size budgets: a file is one noun, a function one verb, and both fit a reader's head.

The limits here are the hard ones; CONTRIBUTING.md names those to aim at. Next: test_names.py.
"""

import ast

from tests.rules.tree import CODE_FOLDERS, Function, functions, parse, python_files, where

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_NESTING = 3
BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def test_no_file_is_longer_than_a_reader_can_keep_in_mind() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in python_files(*CODE_FOLDERS)}
    assert not [where(path, num) for path, num in lengths.items() if num > MAX_FILE_LINES]


def test_every_function_fits_a_screen() -> None:
    assert not [
        f"{where(path, function.lineno)} {function.name}: {num_lines(function)} lines"
        for path in python_files(*CODE_FOLDERS)
        for function in functions(parse(path))
        if num_lines(function) > MAX_FUNCTION_LINES
    ]


def test_no_function_nests_deeper_than_three() -> None:
    assert not [
        f"{where(path, function.lineno)} {function.name}: nests {nesting(function.body)} deep"
        for path in python_files(*CODE_FOLDERS)
        for function in functions(parse(path))
        if nesting(function.body) > MAX_NESTING
    ]


def test_elif_does_not_nest_but_else_if_does() -> None:
    chain = "if a:\n  b\nelif c:\n  d\nelif e:\n  f\nelse:\n  g"
    stairs = "if a:\n  b\nelse:\n  if c:\n    d\n  e"
    assert nesting(ast.parse(chain).body) == 1
    assert nesting(ast.parse(stairs).body) == 2


def num_lines(function: Function) -> int:
    assert function.end_lineno is not None
    length = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is None or first.end_lineno is None:
        return length
    return length - (first.end_lineno - first.lineno + 1)


def nesting(body: list[ast.stmt]) -> int:
    return max((_depth(statement) for statement in body), default=0)


def _depth(statement: ast.stmt) -> int:
    if isinstance(statement, DEFINITIONS):
        return 0
    below = [nesting(body) for body in _bodies(statement)]
    if isinstance(statement, ast.If) and _is_elif(statement):
        # The chain's other branches stand at this depth, not below it.
        return max(1 + nesting(statement.body), _depth(statement.orelse[0]))
    return max(below, default=0) + isinstance(statement, (*BLOCKS, ast.Match))


def _bodies(statement: ast.stmt) -> list[list[ast.stmt]]:
    named = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")]
    parts = [*getattr(statement, "handlers", []), *getattr(statement, "cases", [])]
    return [*named, *(part.body for part in parts)]


def _is_elif(statement: ast.If) -> bool:
    # The syntax tree has no elif: it is an `else` that holds one `if`, at the first one's column.
    rest = statement.orelse
    is_lone_if = len(rest) == 1 and isinstance(rest[0], ast.If)
    return is_lone_if and rest[0].col_offset == statement.col_offset
