"""Python's own library as a corpus: three domains, no other packages, nothing executed."""

from pathlib import Path

import pytest

from moestro.data import stdlib
from moestro.data.config import DataConfig
from moestro.data.corpus import read_corpus
from moestro.data.sources import Found, LeftOut


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay out a small library and headers where an interpreter says that its own are."""
    texts = {
        "lib/os.py": "import sys\n\nprint('the library')\n",
        "lib/data.txt": "not a source of Python",
        "lib/site-packages/other.py": "import somebody_elses_package\n",
        "lib/pydoc_data/topics.py": "# made\ntopics = {'if': 'The if\\nstatement', 'x': 'y'}\n",
        "include/Python.h": "#define Py_PYTHON_H\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    places = {"stdlib": tmp_path / "lib", "include": tmp_path / "include"}
    monkeypatch.setattr(stdlib.sysconfig, "get_path", lambda name: str(places[name]))
    return tmp_path / "lib"


def test_sources_headers_and_topics_are_documents(library: Path) -> None:
    found = [each for each in stdlib.read_stdlib() if isinstance(each, Found)]
    assert [(each.name, each.domain) for each in found] == [
        ("lib/os.py", "python"),
        ("include/Python.h", "c"),
        ("pydoc_data/topics.py:if", "prose"),
        ("pydoc_data/topics.py:x", "prose"),
    ]
    assert found[2].data == b"The if\nstatement"


def test_a_domain_given_for_the_library_names_all_of_it(library: Path) -> None:
    config = DataConfig(paths=("python:stdlib",), domains=("mine",), min_bytes=4)
    assert {each.domain for each in read_corpus(config).documents} == {"mine"}


@pytest.mark.parametrize(
    "source", ["topics: dict = {'a': f()}", "topics = [", "x = 1", "topics = 3"]
)
def test_topics_that_are_no_literals_are_left_out(tmp_path: Path, source: str) -> None:
    (tmp_path / "topics.py").write_text(source)
    (only,) = stdlib.read_topics(tmp_path / "topics.py")
    assert isinstance(only, LeftOut)


def test_a_library_without_headers_or_topics_is_still_read(library: Path) -> None:
    (library / "pydoc_data" / "topics.py").unlink()
    (library.parent / "include" / "Python.h").unlink()
    (library.parent / "include").rmdir()
    found = [each.name for each in stdlib.read_stdlib() if isinstance(each, Found)]
    assert found == ["lib/os.py"]


def test_this_interpreters_manual_is_prose() -> None:
    library = Path(stdlib.sysconfig.get_path("stdlib"))
    topics = list(stdlib.read_topics(library / "pydoc_data" / "topics.py"))
    assert len(topics) > 50
