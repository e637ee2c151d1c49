"""Checkpoints of a run: a model folder that anyone can load, and what an exact resume needs.

A checkpoint appears whole or not at all, and `latest` names the newest whole one.
Next: weights/export.py.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from moestro import files
from moestro.errors import CheckpointError
from moestro.model.config import ModelConfig
from moestro.model.model import Transformer
from moestro.text.tokenizer import Tokenizer
from moestro.train.budget import table_of
from moestro.train.step import Stepper
from moestro.weights.export import save_model
from moestro.weights.find import latest_checkpoint
from moestro.weights.load import load_model
from moestro.weights.store import outgoing, save_file

_ADVICE = "write an older step's name into `latest`"
_DIGESTS = "sha256"
_STATE = "trainer/state.json"
_OPTIMIZER = "trainer/optimizer.safetensors"


@dataclass(frozen=True)
class Progress:
    """How far a run is: steps done, tokens seen, and seconds spent on them."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


def save_checkpoint(
    run: Path, stepper: Stepper, tokenizer: Tokenizer, progress: Progress, keep: int
) -> Path:
    """Write `checkpoints/step-NNNNNNNN`, point `latest` at it, drop all but the newest `keep`."""
    checkpoints = run / "checkpoints"
    path = checkpoints / _folder_name(progress.step)
    if latest_checkpoint(run) != path:
        with files.storage_errors(path):
            # Left by a kill before `latest` named it, or from before its owner set the run back.
            if path.exists():
                shutil.rmtree(path)
        with files.folder_atomic(path) as draft:
            _write(draft, stepper, tokenizer, progress)
        files.write_atomic(run / "latest", f"{path.name}\n".encode())
    past = sorted(old for old in checkpoints.glob("step-*") if old.name <= path.name)
    with files.storage_errors(checkpoints):
        for old in past[:-keep]:
            shutil.rmtree(old)
    return path


def resume(path: Path, stepper: Stepper) -> Progress:
    """Load weights, biases, thresholds and optimizer state into a freshly built stepper."""
    state = files.read_json(path / _STATE)
    _check_whole(path, state)
    loaded = load_model(path, dtype=None)
    _check_same_model(path, loaded.config, stepper.model.config)
    _copy_into(stepper.model, loaded)
    try:
        stepper.optimizers.load_state(load_file(path / _OPTIMIZER))
        return _progress(path, state)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path / 'trainer'}: cannot be resumed ({error}): {_ADVICE}"
        ) from error


def _write(draft: Path, stepper: Stepper, tokenizer: Tokenizer, progress: Progress) -> None:
    model = stepper.model
    model.config = model.config.with_budget(table_of(stepper.gates))
    (draft / "trainer").mkdir()
    state = stepper.optimizers.state()
    save_file(draft / _OPTIMIZER, [outgoing(name, tensor) for name, tensor in state.items()])
    # Training waits, and this is as large as the weights or larger: hashed while they are written.
    with ThreadPoolExecutor(1) as beside:
        digest = beside.submit(files.hash_file, draft / _OPTIMIZER)
        save_model(model, draft)
        tokenizer.save(draft)
        digests = {**_weight_digests(draft), _OPTIMIZER: digest.result()}
    record = {"step": progress.step, "tokens": progress.tokens, "seconds": progress.seconds}
    digests[_STATE] = _record_digest(record)
    files.write_json(draft / _STATE, record | {_DIGESTS: digests})


def _weight_digests(path: Path) -> dict[str, str]:
    """Return the hashes of a checkpoint's weights, by their files' names."""
    return {each.name: files.hash_file(each) for each in sorted(path.glob("*.safetensors"))}


def _record_digest(state: Mapping[str, Any]) -> str:
    """Return the hash of all that a state says but for hashes: a file cannot hold its own."""
    said = {key: value for key, value in state.items() if key != _DIGESTS}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _check_whole(path: Path, state: Mapping[str, Any]) -> None:
    """Raise CheckpointError for files other than those written: they would train on unnoticed."""
    known = state.get(_DIGESTS)
    if known is None:
        # Written before digests were.
        return
    if not isinstance(known, dict):
        raise CheckpointError(f"{path / _STATE}: {_DIGESTS} is {known!r}: {_ADVICE}")
    found = _weight_digests(path)
    # Until there were more of them, the digests were those of the weights.
    if _STATE in known:
        found[_STATE] = _record_digest(state)
        if (path / _OPTIMIZER).exists():
            found[_OPTIMIZER] = files.hash_file(path / _OPTIMIZER)
    for name in sorted(known.keys() | found.keys()):
        if known.get(name) != found.get(name):
            raise CheckpointError(f"{path / name}: is not as it was written: {_ADVICE}")


def _progress(path: Path, state: Mapping[str, Any]) -> Progress:
    step, tokens, seconds = state["step"], state["tokens"], float(state["seconds"])
    if not (isinstance(step, int) and isinstance(tokens, int)):
        raise TypeError(f"step is {step!r}, tokens {tokens!r}")
    # Batches follow from the step: another number would train on other text.
    if path.name != _folder_name(step):
        raise ValueError(f"step is {step}")
    return Progress(step=step, tokens=tokens, seconds=seconds)


def _folder_name(step: int) -> str:
    return f"step-{step:08d}"


def _check_same_model(path: Path, found: ModelConfig, wanted: ModelConfig) -> None:
    there, here = found.to_hf(), wanted.to_hf()
    for key in sorted((there.keys() | here.keys()) - {"budget"}):
        if there.get(key) != here.get(key):
            raise CheckpointError(
                f"{path}: is of another model than the run: {key} is {there.get(key)} there and"
                f" {here.get(key)} in config.toml: {_ADVICE}"
            )


def _copy_into(model: Transformer, loaded: Transformer) -> None:
    with torch.no_grad():
        model.load_state_dict(loaded.state_dict())
    model.config = loaded.config
    for gate, source in zip(model.gates(), loaded.gates(), strict=True):
        gate.config = source.config
        gate.fractions_N, gate.thresholds_N = source.fractions_N, source.thresholds_N
