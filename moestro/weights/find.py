"""Which checkpoint MODEL means: a folder or file itself, or a run's newest. No torch.

Knows names of files, not what is in them. Next: load.py.
"""

from pathlib import Path

from moestro.errors import CheckpointError
from moestro.gguf_file import is_gguf

_ASK = "give a run, a checkpoint, a Hugging Face folder or a .gguf file"


def find_checkpoint(path: Path) -> Path:
    """Return what MODEL means: a Hugging Face folder, a GGUF file, or a run's newest checkpoint."""
    if is_gguf(path):
        return path
    if path.is_file():
        raise CheckpointError(f"{path}: is a file, but no .gguf file: {_ASK}")
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder: {_ASK}")
    if (path / "config.json").exists():
        return path
    if not (path / "config.toml").exists():
        raise CheckpointError(f"{path}: holds no config.json: {_ASK}")
    found = latest_checkpoint(path)
    if found is None:
        raise CheckpointError(f"{path}: this run has no checkpoint yet: let it train on")
    return found


def latest_checkpoint(run: Path) -> Path | None:
    """Return the checkpoint that `latest` names, or None for a run without one."""
    pointer = run / "latest"
    if not pointer.exists():
        return None
    name = pointer.read_text(encoding="utf-8", errors="replace").strip()
    path = run / "checkpoints" / name
    if not name or Path(name).name != name or not path.is_dir():
        raise CheckpointError(f"{pointer}: names {name!r}, which is not there: correct the file")
    return path
