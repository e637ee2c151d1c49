"""Every readable kind of file, and folders with traps in them."""

import gzip
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet

from moestro.data.sources import Found, LeftOut, read_path

TEXT = "some text that is long enough to keep\n"


def texts(path: Path) -> list[str]:
    return [each.data.decode() for each in read_path(path) if isinstance(each, Found)]


def reasons(path: Path) -> list[tuple[str, str]]:
    return [(each.name, each.reason) for each in read_path(path) if isinstance(each, LeftOut)]


def test_json_lines_give_a_document_per_record(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    records = [{"text": "one", "domain": "law"}, {"content": "two"}, {"title": "three"}, 4]
    lines = [*map(json.dumps, records), "", "{broken", r'{"text": "\ud800"}']
    path.write_text("\n".join(lines))
    found = [each for each in read_path(path) if isinstance(each, Found)]
    assert [(each.name, each.domain, each.data) for each in found] == [
        ("data.jsonl:1", "law", b"one"),
        ("data.jsonl:2", "jsonl", b"two"),
        ("data.jsonl:7", "jsonl", b"\xed\xa0\x80"),
    ]
    assert reasons(path) == [
        ("data.jsonl:3", "no text field"),
        ("data.jsonl:4", "no text field"),
        ("data.jsonl:6", "unreadable"),
    ]


def test_zipped_text_and_json_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": TEXT}).encode()))
    assert texts(tmp_path) == [TEXT, TEXT]
    assert next(each for each in read_path(tmp_path) if isinstance(each, Found)).domain == "prose"


def test_a_suffix_in_capitals_names_the_same_kind(tmp_path: Path) -> None:
    (tmp_path / "A.JSONL").write_text(json.dumps({"text": TEXT}))
    (tmp_path / "B.TXT.GZ").write_bytes(gzip.compress(TEXT.encode()))
    assert texts(tmp_path) == [TEXT, TEXT]
    found = [each for each in read_path(tmp_path) if isinstance(each, Found)]
    assert [each.domain for each in found] == ["jsonl", "prose"]


def test_a_zipped_file_cut_short_is_unreadable(tmp_path: Path) -> None:
    whole = gzip.compress(os.urandom(5000).hex().encode())
    (tmp_path / "a.txt.gz").write_bytes(whole[:-20])
    assert [reason for _, reason in reasons(tmp_path)] == ["unreadable"]


def test_parquet_gives_a_document_per_row(tmp_path: Path) -> None:
    rows = {"content": ["one", None, "three"], "domain": ["law", "law", None], "id": [1, 2, 3]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2]}), tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no parquet")
    found = [each for each in read_path(tmp_path) if isinstance(each, Found)]
    assert [(each.domain, each.data) for each in found] == [("law", b"one"), ("parquet", b"three")]
    reasons_only = [reason for _, reason in reasons(tmp_path)]
    assert reasons_only == ["no text field"] * 3 + ["unreadable"]


def test_hidden_files_and_caches_are_passed_over(tmp_path: Path) -> None:
    for name in (".git/config", ".hidden", "__pycache__/a.py", "sub/.env", "sub/seen.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(TEXT + name)
    assert texts(tmp_path) == [f"{TEXT}sub/seen.py"]
    assert reasons(tmp_path) == []


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.py").write_text(TEXT)
    (tmp_path / "sub" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "twin").symlink_to(tmp_path / "sub", target_is_directory=True)
    assert texts(tmp_path) == [TEXT]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert reasons(tmp_path) == [(f"{tmp_path.name}/pipe.txt", "unreadable")]


def test_names_that_are_no_unicode_become_names_that_can_be_written(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    for name in (b"na\xefve.txt", b"LICEN\xc7A"):
        Path(os.fsdecode(folder + b"/" + name)).write_text(TEXT)
    lines = Path(os.fsdecode(folder + b"/records.jsonl"))
    lines.write_text(r'{"text": "one", "domain": "\ud800"}' + "\n{broken")
    items = list(read_path(Path(os.fsdecode(folder))))
    assert len(items) == 4
    assert items[0].name == "caf?/LICEN?A"
    for each in items:
        assert each.name.encode()
        assert isinstance(each, LeftOut) or each.domain.encode()
