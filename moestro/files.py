"""Files that appear whole or not at all, and text files that parse or say where they do not.

Knows paths and bytes, not what they mean. Next: settings.py.
"""

import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moestro.errors import CheckpointError, StorageError


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`; a crash leaves the old content or the new, never a mixture."""
    # Not from `tempfile`, whose files nobody but their owner may read.
    draft = path.parent / f".{path.name}.{secrets.token_hex(4)}.partial"
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


@contextmanager
def file_atomic(path: Path) -> Iterator[Path]:
    """Yield where to write a file that becomes `path` when the block ends, and vanishes otherwise.

    `path` must not exist.
    """
    if os.path.lexists(path):
        raise StorageError(f"{path}: exists already: remove it or choose another name")
    draft = path.parent / f".{path.name}.partial"
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield draft
            _sync(draft)
            os.rename(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


@contextmanager
def folder_atomic(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends, and vanishes when it raises.

    What a killed process left half-written stays under a hidden name beside `path`: the next call
    for the same `path` removes it. `path` must not exist.
    """
    if os.path.lexists(path):
        raise StorageError(f"{path}: exists already: remove it or choose another name")
    draft = path.parent / f".{path.name}.partial"
    with storage_errors(path):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            yield draft
            _settle(draft)
            os.rename(draft, path)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        _sync_folder(path.parent)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal; it is read piece by piece."""
    with storage_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object, or raise CheckpointError naming the file and the place."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}: give a file that can be read") from error
    # Broken JSON, text that is not UTF-8 and a number too long to parse are all ValueErrors.
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}): restore the file") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds {type(value).__name__}, expected an object")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write one JSON object, indented, atomically; nan and inf have no JSON form: ValueError."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, f"{text}\n".encode())


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into StorageError naming `path` and the reason."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"{path}: {reason}: free space or grant access, then repeat") from error


def shown(text: str) -> str:
    """Return text from a file that may be damaged as one printable line of bounded length."""
    return text.encode("unicode_escape").decode()[:300]


def _settle(draft: Path) -> None:
    # Some writers, safetensors' among them, make files that only their owner may read.
    readable = stat.S_IMODE(draft.stat().st_mode) & 0o666
    for path in sorted(draft.rglob("*")):
        if path.is_file():
            path.chmod(readable)
        _sync(path)
    _sync(draft)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(path: Path) -> None:
    # The rename itself must reach the disk, or a power cut can undo it after we said it was done.
    _sync(path)
