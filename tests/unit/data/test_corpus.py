"""What becomes a document, and that all the rest is counted with its reason."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moestro.data.config import DataConfig
from moestro.data.corpus import Corpus, cut_at_lines, read_corpus
from moestro.errors import DataError

TEXT = "def add(first, second):\n    return first + second\n"


def read(path: Path | str, **values: object) -> Corpus:
    return read_corpus(DataConfig(paths=(str(path),), **values))


def test_files_come_in_the_order_of_their_names_with_a_domain_by_kind(tmp_path: Path) -> None:
    for name in ("b.py", "a.h", "sub/c.md", "sub/d.zig", "e"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{TEXT}# {name}\n")
    corpus = read(tmp_path)
    root = tmp_path.name
    assert [(each.name, each.domain) for each in corpus.documents] == [
        (f"{root}/a.h", "c"),
        (f"{root}/b.py", "python"),
        (f"{root}/e", root),
        (f"{root}/sub/c.md", "prose"),
        (f"{root}/sub/d.zig", "zig"),
    ]
    assert corpus.stats.documents == {"c": 1, "python": 1, root: 1, "prose": 1, "zig": 1}
    assert sum(corpus.stats.num_bytes.values()) == sum(len(d.text) for d in corpus.documents)


def test_what_is_no_text_is_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(TEXT)
    (tmp_path / "b.py").write_text(TEXT)
    (tmp_path / "latin.py").write_bytes(TEXT.encode() + b"# \xe9\n")
    (tmp_path / "utf16.py").write_bytes(TEXT.encode("utf-16"))
    (tmp_path / "nul.py").write_bytes(TEXT.encode() + b"\0")
    (tmp_path / "late_nul.py").write_bytes(TEXT.encode() * 1000 + b"\0")
    (tmp_path / "blank.py").write_text("\n" * 50)
    (tmp_path / "short.py").write_text("x = 1\n")
    (tmp_path / "nowhere.py").symlink_to(tmp_path / "gone.py")
    (tmp_path / "broken.txt.gz").write_bytes(b"not gzip at all")
    corpus = read(tmp_path)
    assert [each.text for each in corpus.documents] == [TEXT]
    assert corpus.stats.left_out == {
        "binary": 2,
        "not UTF-8": 2,
        "duplicate": 1,
        "empty": 1,
        "short": 1,
        "no text field": 0,
        "unreadable": 2,
    }
    assert corpus.stats.examples["duplicate"] == [f"{tmp_path.name}/b.py"]
    assert "1 duplicate" in corpus.stats.describe_left_out()


def test_copies_that_differ_in_white_space_alone_are_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(TEXT)
    (tmp_path / "b.py").write_bytes(TEXT.replace("\n", "\r\n").encode())
    (tmp_path / "c.py").write_text(TEXT.replace("    ", "\t") + "\n\n")
    (tmp_path / "d.py").write_text(TEXT.replace(" + ", "+"))
    corpus = read(tmp_path)
    assert [each.name for each in corpus.documents] == [
        f"{tmp_path.name}/a.py",
        f"{tmp_path.name}/d.py",
    ]
    assert corpus.stats.left_out["duplicate"] == 2


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert read(tmp_path).documents[0].text == TEXT


def test_one_domain_per_path_overrides_the_kind(tmp_path: Path) -> None:
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(TEXT + name)
    paths = (str(tmp_path / "one.py"), str(tmp_path / "two.py"))
    corpus = read_corpus(DataConfig(paths=paths, domains=("mine", "yours")))
    assert [each.domain for each in corpus.documents] == ["mine", "yours"]


def test_a_path_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone: no such file or folder: name one that exists"):
        read(tmp_path / "gone")


def test_no_readable_text_is_an_error_with_path_and_counts(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\0\1")
    (tmp_path / "b.bin").write_bytes(b"\xff\xfe")
    said = r"no readable text; left out: 1 binary .*; 1 not UTF-8 .*UTF-8 text, of 32 bytes or more"
    with pytest.raises(DataError, match=said) as no:
        read(tmp_path)
    assert str(tmp_path) in str(no.value)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no readable text; no files: name"):
        read(tmp_path)


def test_a_long_document_is_cut_at_line_ends(tmp_path: Path) -> None:
    text = "".join(f"line {number}\n" for number in range(500))
    (tmp_path / "long.txt").write_text(text)
    corpus = read(tmp_path, max_document_bytes=1024)
    assert corpus.stats.num_cut == 1
    assert len({document.whole for document in corpus.documents} - {None}) == 1
    assert "".join(each.text for each in corpus.documents) == text
    assert all(each.text.endswith("\n") for each in corpus.documents)
    assert corpus.documents[1].name.endswith("long.txt#2")


@given(text=st.text(st.characters(exclude_categories=["Cs"])), max_bytes=st.integers(4, 40))
def test_parts_join_to_the_text_and_none_is_too_long(text: str, max_bytes: int) -> None:
    parts = cut_at_lines(text, max_bytes)
    assert "".join(parts) == text
    assert all(len(part.encode()) <= max_bytes for part in parts)


def test_a_sample_keeps_whole_documents_up_to_its_size(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"{number:02}.py").write_text(f"{TEXT}# {number:02}\n")
    corpus = read(tmp_path, max_bytes=560)
    names = [each.name for each in corpus.documents]
    assert len(names) == 10
    assert names == sorted(names)
    assert corpus.stats.num_unused == 40
    assert len(read(tmp_path, max_bytes=1).documents) == 1


def test_a_draw_depends_on_text_seed_and_purpose_alone(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(TEXT)
    (document,) = read(tmp_path).documents
    (again,) = read(tmp_path / "a.py").documents
    assert document.draw("split", 1) == again.draw("split", 1)
    assert len({document.draw("split", 1), document.draw("split", 2), document.draw("fim", 1)}) == 3
    assert 0 <= document.draw("split", 1) < 1
