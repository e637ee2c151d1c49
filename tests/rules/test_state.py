"""No hidden state and no hidden effects: what a module does, its arguments say.

Knows syntax, so a determined author can get past it; a reviewer cannot be. Next: test_layers.py.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rules.tree import PACKAGE, parse, python_files, where

MUTABLE_CALLS = {"list", "dict", "set", "bytearray", "deque", "defaultdict", "Counter"}
MUTATORS = {"add", "append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove"}
MUTATORS |= {"setdefault", "sort", "update"}
# Elsewhere the narrowest type is caught, or all of them to clean up and raise again.
# The command line, the worker's loop, and the server's border.
MAY_CATCH_ALL = {
    "cli/main.py",
    "engine/worker.py",
    "records/ledger.py",
    "records/poll.py",
    "server/errors.py",
    "server/exchange.py",
    "server/narration.py",
}
ANYTHING = {"Exception", "BaseException"}


def test_only_the_command_line_prints() -> None:
    assert not [
        place
        for path in python_files("moestro")
        if path.parent != PACKAGE / "cli"
        for place in calls(path, {"print"})
    ]


def test_nothing_is_unpickled() -> None:
    modules = {"pickle", "dill", "shelve", "marshal", "joblib", "cloudpickle"}
    banned = {"torch.load", "numpy.load", "np.load", "eval", "exec"}
    found = [place for path in python_files("moestro") for place in calls(path, banned)]
    for path in python_files("moestro"):
        names = {name.partition(".")[0] for name in imports(parse(path))}
        found += [f"{where(path, 1)} {name}" for name in sorted(names & modules)]
    assert not found


def test_only_settings_reads_the_environment() -> None:
    names = {"os.environ", "os.getenv", "os.environb", "environ", "getenv"}
    assert not [
        f"{where(path, node.lineno)} {ast.unparse(node)}"
        for path in python_files("moestro")
        if path != PACKAGE / "settings.py"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) in names
    ]


def test_errors_are_caught_by_their_narrowest_type() -> None:
    assert not [
        where(path, handler.lineno)
        for path in python_files("moestro")
        if path.relative_to(PACKAGE).as_posix() not in MAY_CATCH_ALL
        for handler in ast.walk(parse(path))
        if isinstance(handler, ast.ExceptHandler) and swallows_all(handler)
    ]


def test_no_module_keeps_mutable_state() -> None:
    assert not [
        f"{where(path, line)} {reason}"
        for path in python_files("moestro")
        for line, reason in mutable_state(parse(path))
    ]


@pytest.mark.parametrize(
    "source",
    [
        "cache = {}",
        "seen: list[int] = []",
        "from collections import defaultdict\nloads = defaultdict(int)",
        "CACHE = {}\ndef f():\n    CACHE[1] = 2",
        "CACHE = {}\ndef f():\n    CACHE.update(a=1)",
        "COUNT = 0\ndef f():\n    global COUNT",
    ],
)
def test_mutable_state_is_recognized(source: str) -> None:
    assert list(mutable_state(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "TABLE = {'a': 1}\nx = TABLE['a']",
        "limits = (1, 2)",
        "def f():\n    seen = []\n    seen.append(1)",
    ],
)
def test_constants_and_locals_are_not_state(source: str) -> None:
    assert not list(mutable_state(ast.parse(source)))


def mutable_state(module: ast.Module) -> Iterator[tuple[int, str]]:
    tables = set()
    for name, value, line in module_variables(module):
        if not is_mutable(value):
            continue
        tables.add(name)
        if name.upper() != name:
            yield line, f"{name}: a module-level {type(value).__name__} that is no constant"
    for node in ast.walk(module):
        if isinstance(node, ast.Global):
            yield node.lineno, f"global {', '.join(node.names)}"
        elif isinstance(node, ast.expr) and changed_name(node) in tables:
            yield node.lineno, f"changes the module's {changed_name(node)}"


def module_variables(module: ast.Module) -> Iterator[tuple[str, ast.expr, int]]:
    for node in module.body:
        if isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            yield from ((name, node.value, node.lineno) for name in names if name != "__all__")
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            yield node.target.id, node.value, node.lineno


def is_mutable(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        return ast.unparse(value.func).rpartition(".")[2] in MUTABLE_CALLS
    literals = ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp
    return isinstance(value, literals)


def changed_name(node: ast.expr) -> str | None:
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        return name_of(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return name_of(node.func.value) if node.func.attr in MUTATORS else None
    return None


def name_of(node: ast.expr) -> str | None:
    return node.id if isinstance(node, ast.Name) else None


def swallows_all(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    catches_all = any(kind is None or ast.unparse(kind) in ANYTHING for kind in kinds)
    raises = any(isinstance(node, ast.Raise) for node in handler.body)
    return catches_all and not raises


def calls(path: Path, names: set[str]) -> Iterator[str]:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
            yield f"{where(path, node.lineno)} {ast.unparse(node.func)}"


def imports(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
