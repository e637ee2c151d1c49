"""Folders and files of every readable kind, as named bytes.

Knows formats, not which text is worth keeping. What cannot be read is passed on as `LeftOut`, never
raised: one bad file must not end a run. Next: stdlib.py.
"""

import gzip
import json
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Literal

from moestro.errors import ConfigError, DataError

# Where no name is given, the kind of file is the domain.
_DOMAINS = {
    ".py": "python", ".pyi": "python", ".c": "c", ".h": "c", ".cc": "c++", ".cpp": "c++",
    ".hpp": "c++", ".js": "javascript", ".ts": "typescript", ".rs": "rust", ".md": "prose",
    ".rst": "prose", ".txt": "prose",
}  # fmt: skip
_TEXT_FIELDS = ("text", "content")
_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules"})
_HEAD_BYTES = 8192
_BATCH_RECORDS = 1024

Reason = Literal[
    "binary", "not UTF-8", "duplicate", "empty", "short", "no text field", "unreadable"
]


@dataclass(frozen=True, kw_only=True)
class Found:
    """One candidate document, not yet known to be text."""

    name: str
    domain: str
    data: bytes


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Something that gave no document, and why."""

    name: str
    reason: Reason


def read_path(path: Path, domain: str | None = None) -> Iterator[Found | LeftOut]:
    """Give every candidate in a folder or a file, in the order of their names."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder: name one that exists")
    if not path.is_dir():
        yield from read_file(path, path.name, domain)
        return
    for item in walk(path):
        if isinstance(item, LeftOut):
            yield item
        else:
            name = f"{path.resolve().name}/{item.relative_to(path).as_posix()}"
            yield from read_file(item, name, domain)


def walk(root: Path, skipped: frozenset[str] = frozenset()) -> Iterator[Path | LeftOut]:
    """Give the files below `root`, sorted, without hidden ones, caches and loops of links."""
    seen: set[tuple[int, int]] = set()
    refused: list[LeftOut] = []

    def refuse(error: OSError) -> None:
        refused.append(LeftOut(name=_readable(str(error.filename)), reason="unreadable"))

    for folder, names, files in os.walk(root, followlinks=True, onerror=refuse):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        hidden = {name for name in names if name.startswith(".")}
        names[:] = sorted(set(names) - hidden - skipped - _SKIPPED_FOLDERS)
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))
    yield from refused


def read_file(path: Path, name: str, domain: str | None = None) -> Iterator[Found | LeftOut]:
    """Give the documents in one file: one, or one per record of JSON lines and parquet."""
    is_zipped = path.suffix.lower() == ".gz"
    suffix = (Path(path.stem) if is_zipped else path).suffix.lower()
    domain = domain or _DOMAINS.get(suffix) or suffix[1:] or path.parent.name or "text"
    name, domain = _readable(name), _readable(domain)
    try:
        # Opening a pipe or a device could wait for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            yield LeftOut(name=name, reason="unreadable")
        elif suffix == ".parquet":
            yield from _read_parquet(path, name, domain)
        elif suffix in (".jsonl", ".ndjson"):
            with _open(path, is_zipped) as file:
                yield from _read_lines(file, name, domain)
        else:
            with _open(path, is_zipped) as file:
                head = file.read(_HEAD_BYTES)
                # A large binary file is not worth reading to its end.
                data = head if b"\0" in head else head + file.read()
            yield Found(name=name, domain=domain, data=data)
    except (OSError, EOFError, zlib.error):
        yield LeftOut(name=name, reason="unreadable")


def _open(path: Path, is_zipped: bool) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path, "rb") if is_zipped else path.open("rb")


def _read_lines(file: Iterable[bytes], name: str, domain: str) -> Iterator[Found | LeftOut]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            yield LeftOut(name=f"{name}:{number}", reason="unreadable")
            continue
        yield _read_record(record, f"{name}:{number}", domain)


def _read_record(record: object, name: str, domain: str) -> Found | LeftOut:
    fields = record if isinstance(record, dict) else {}
    text = next((fields[key] for key in _TEXT_FIELDS if isinstance(fields.get(key), str)), None)
    if text is None:
        return LeftOut(name=name, reason="no text field")
    own = fields.get("domain")
    # A lone surrogate becomes bytes that are no UTF-8, and is counted with its kind.
    data = text.encode("utf-8", errors="surrogatepass")
    domain = _readable(own) if isinstance(own, str) and own else domain
    return Found(name=name, domain=domain, data=data)


def _read_parquet(path: Path, name: str, domain: str) -> Iterator[Found | LeftOut]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"{path}: reading parquet needs pyarrow: pip install pyarrow") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = {*file.schema_arrow.names} & {*_TEXT_FIELDS, "domain"}
            batches = file.iter_batches(batch_size=_BATCH_RECORDS, columns=sorted(columns))
            # Without a known column every record is empty, and each is counted.
            lists = (batch.to_pylist() if columns else [{}] * batch.num_rows for batch in batches)
            for number, record in enumerate(chain.from_iterable(lists), start=1):
                yield _read_record(record, f"{name}:{number}", domain)
    except pyarrow.ArrowException:
        yield LeftOut(name=name, reason="unreadable")


def _readable(name: str) -> str:
    # Old disks hold names that are no UTF-8, and what is written of a run must be.
    return name.encode(errors="replace").decode()
