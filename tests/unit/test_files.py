"""Files: whole or not at all, through failures, full disks and kills; errors that name the file."""

import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moestro.errors import CheckpointError, StorageError
from moestro.files import folder_atomic, read_json, storage_errors, write_atomic, write_json

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """Let the operating system refuse longer files, as a full disk would."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


def names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "latest"
    write_atomic(path, b"step-1")
    write_atomic(path, b"step-2")
    assert path.read_bytes() == b"step-2"
    assert names_in(path.parent) == ["latest"]


def test_written_files_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_atomic(tmp_path / "config.json", b"{}")
        with folder_atomic(tmp_path / "step-1") as draft:
            (draft / "trainer").mkdir()
            (draft / "trainer" / "state").touch(mode=0o600)
    finally:
        os.umask(old)
    for path in (tmp_path / "config.json", tmp_path / "step-1" / "trainer" / "state"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_refused_write_keeps_the_old_file_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "latest"
    write_atomic(path, b"old")
    with file_size_limit(1000), pytest.raises(StorageError, match="latest: File too large"):
        write_atomic(path, bytes(2000))
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["latest"]


def test_a_file_cannot_take_a_folders_place(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(StorageError, match="run: Is a directory"):
        write_atomic(tmp_path / "run", b"")
    assert names_in(tmp_path) == ["run"]


def test_a_file_where_a_folder_is_needed_is_an_error_that_names_the_path(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(StorageError, match=r"config\.toml"):
        write_atomic(tmp_path / "run" / "config.toml", b"")


def test_a_folder_appears_when_its_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "step-1"
    with folder_atomic(path) as draft:
        (draft / "trainer").mkdir()
        (draft / "trainer" / "state.json").write_text("{}")
        assert not path.exists()
    assert (path / "trainer" / "state.json").read_text() == "{}"
    assert names_in(path.parent) == ["step-1"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failed_block_leaves_no_folder(tmp_path: Path, failure: type[BaseException]) -> None:
    def fill() -> None:
        with folder_atomic(tmp_path / "step-1") as draft:
            (draft / "model").write_text("half")
            raise failure

    with pytest.raises(failure):
        fill()
    assert names_in(tmp_path) == []


def test_a_disk_that_fills_in_the_block_is_a_storage_error_and_leaves_no_folder(
    tmp_path: Path,
) -> None:
    def fill() -> None:
        with file_size_limit(1000), folder_atomic(tmp_path / "step-1") as draft:
            (draft / "model").write_bytes(bytes(2000))

    with pytest.raises(StorageError, match="step-1: File too large: free space"):
        fill()
    assert names_in(tmp_path) == []


def test_an_existing_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "step-1").mkdir()
    with (
        pytest.raises(StorageError, match="step-1: exists already"),
        folder_atomic(tmp_path / "step-1"),
    ):
        pytest.fail("the block was entered")
    assert names_in(tmp_path) == ["step-1"]


def test_a_process_killed_in_the_block_leaves_no_folder_and_the_next_one_succeeds(
    tmp_path: Path,
) -> None:
    path = tmp_path / "step-1"
    program = (
        "import os, pathlib, signal, sys\n"
        "from moestro.files import folder_atomic\n"
        "with folder_atomic(pathlib.Path(sys.argv[1])) as draft:\n"
        "    (draft / 'half').write_text('written')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).resolve().parents[2]
    killed = subprocess.run([sys.executable, "-c", program, str(path)], cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert names_in(tmp_path) == [".step-1.partial"]
    with folder_atomic(path) as draft:
        (draft / "whole").write_text("written")
    assert names_in(tmp_path) == ["step-1"]
    assert names_in(path) == ["whole"]


@given(value=st.dictionaries(st.text(), json_values, max_size=4))
def test_json_reads_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_json_lacks_is_not_written(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "metrics.json", {"loss": number})
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (b'{"a": 1', "not valid JSON"),
        (b'{"a": \xff}', "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a":' + b"[" * 100_000, "not valid JSON"),
        (b"[1]", "holds list, expected an object"),
    ],
)
def test_damaged_json_is_an_error_that_names_the_file(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"config.json: {reason}"):
        read_json(path)


def test_json_that_is_not_there_or_no_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    for path, reason in (
        (tmp_path / "config.json", "no such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "plain" / "config.json", "Not a directory"),
    ):
        with pytest.raises(CheckpointError, match=f"{path.name}: {reason}"):
            read_json(path)


def test_written_json_is_for_people_too(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "caf\u00e9"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text == '{\n  "name": "caf\u00e9"\n}\n'
    assert json.loads(text) == {"name": "caf\u00e9"}


def test_a_refusal_without_a_reason_still_says_something(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="device gone"), storage_errors(tmp_path):
        raise OSError("device gone")
