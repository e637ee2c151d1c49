"""A policy's folder: `policy.json` for people and pages, `weights.npz` for the estimator.

No pickle, at most 5 MB. Knows the format, not what the numbers mean. Next: report.py.
"""

import hashlib
import io
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from moestro.errors import CheckpointError, ConfigError
from moestro.files import read_json, storage_errors, write_atomic, write_json
from moestro.policy.cascade import CascadeRule
from moestro.policy.estimate import TOPIC_PLACES, Encoder, Estimator
from moestro.policy.features import NUM_BUCKETS
from moestro.policy.forest import Forest
from moestro.policy.policy import Policy, PolicyKind
from moestro.policy.prices import Price
from moestro.policy.seen import SeenPrompts
from moestro.policy.shape import SHAPE
from moestro.policy.verify import Verifier

FORMAT = 4
POLICY_FILE, WEIGHTS_FILE = "policy.json", "weights.npz"
MAX_BYTES = 5_000_000
_PLACES = ("roots_T", "features_V", "left_V")
_HALF = ("rarity_D", "topics_HK", "text_DM", "values_VM")
_ENCODER = ("rarity_D", "topics_HK", "center_S", "spread_S", "whiten_SS")
_HEADS = ("text_DM", "bias_M")
_SEEN = "prints_L"
# Of the weights: both files are from one writing, or the floor was shown for others.
_DIGEST = "weights_sha256"
_FOREST = ("roots_T", "features_V", "thresholds_V", "left_V", "values_VM")
# What zipfile, zlib and numpy raise where bytes of weights are not what they were.
_DAMAGE = (
    AttributeError, KeyError, TypeError, ValueError, OSError, EOFError, MemoryError, RuntimeError,
    struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def save_policy(policy: Policy, folder: Path) -> None:
    """Write a policy's folder; what is there is replaced, the weights first."""
    estimator = policy.estimator
    arrays = {name: getattr(estimator.encoder, name) for name in _ENCODER}
    arrays |= {name: getattr(estimator, name) for name in _HEADS}
    arrays |= {name: getattr(estimator.forest, name) for name in _FOREST}
    arrays |= {name: arrays[name].astype(np.int32) for name in _PLACES}
    arrays |= {name: arrays[name].astype(np.float16) for name in _HALF}
    arrays[_SEEN] = policy.seen.prints_L
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, **arrays)
    if len(packed.getvalue()) > MAX_BYTES:
        raise ConfigError(
            f"a policy of {len(policy.models)} models takes {len(packed.getvalue()):,} bytes, "
            f"limit {MAX_BYTES:,}: fit fewer models"
        )
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / WEIGHTS_FILE, packed.getvalue())
    digest = hashlib.sha256(packed.getvalue()).hexdigest()
    write_json(folder / POLICY_FILE, {**_describe(policy), _DIGEST: digest})


def is_calibrated(folder: Path) -> bool:
    """Tell whether a folder has a policy that can be used and whose floor was shown to hold."""
    if not (folder / POLICY_FILE).is_file():
        return False
    try:
        saved = read_json(folder / POLICY_FILE)
    except CheckpointError:
        return False
    return saved.get("format") == FORMAT and saved.get("threshold") is not None


def load_policy(path: Path) -> Policy:
    """Read a policy's folder, or raise CheckpointError saying what is wrong with it."""
    if not (path / POLICY_FILE).is_file():
        raise CheckpointError(
            f"{path}: holds no {POLICY_FILE}: give a folder that `moestro policy fit` wrote"
        )
    saved = read_json(path / POLICY_FILE)
    if saved.get("format") != FORMAT:
        raise CheckpointError(
            f"{path / POLICY_FILE}: format {saved.get('format')!r} is not {FORMAT}: fit again"
        )
    try:
        weights = (path / WEIGHTS_FILE).read_bytes()
        # Policies of before have no digest.
        if saved.get(_DIGEST, digest := hashlib.sha256(weights).hexdigest()) != digest:
            raise ValueError(f"{WEIGHTS_FILE} is not the one that {POLICY_FILE} tells of")
        return _build(saved, weights)
    except _DAMAGE as error:
        raise CheckpointError(f"{path}: is damaged ({error}): fit the policy again") from error


def _describe(policy: Policy) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": policy.kind,
        "models": list(policy.models),
        "strongest": policy.strongest,
        "prices": {name: asdict(price) for name, price in policy.prices.items()},
        "threshold": policy.threshold,
        "evidence": dict(policy.evidence),
        "far": policy.estimator.encoder.far,
        "forest_depth": policy.estimator.forest.depth,
        "cascade": None if policy.cascade is None else policy.cascade.to_dict(),
        "verifier": None if policy.verifier is None else policy.verifier.to_dict(),
        "checks_answers": policy.checks_answers,
        "curve": [dict(point) for point in policy.curve],
        "training": dict(policy.training),
    }


def _build(saved: Mapping[str, Any], weights: bytes) -> Policy:
    with zipfile.ZipFile(io.BytesIO(weights)) as packed:
        tensors = {name: _read_numbers(packed, name) for name in (*_ENCODER, *_HEADS, *_FOREST)}
        is_known = f"{_SEEN}.npy" in packed.namelist()
        seen = SeenPrompts(_read_prints(packed)) if is_known else SeenPrompts()
    kind, models = saved["kind"], tuple(map(str, saved["models"]))
    if kind not in get_args(PolicyKind):
        raise ValueError(f"kind is {kind!r}, expected pair or pool")
    expected = (NUM_BUCKETS, len(models))
    if tensors["text_DM"].shape != expected or tensors["center_S"].shape != (len(SHAPE),):
        raise ValueError(f"weights have shape {tensors['text_DM'].shape}, expected {expected}")
    topics_HK = tensors["topics_HK"]
    if topics_HK.ndim != 2 or len(topics_HK) != TOPIC_PLACES:
        raise ValueError(f"topics have shape {topics_HK.shape}, expected ({TOPIC_PLACES}, any)")
    encoder = Encoder(**{name: tensors[name] for name in _ENCODER}, far=float(saved["far"]))
    threshold, cascade, verifier = (saved.get(n) for n in ("threshold", "cascade", "verifier"))
    checks_answers = bool(saved.get("checks_answers", False))
    if checks_answers and (verifier is None or threshold is None):
        raise ValueError("answers are to be checked, and there is nothing to check them by")
    return Policy(
        kind=kind,
        models=models,
        estimator=Estimator(
            encoder=encoder,
            forest=_build_forest(tensors, int(saved["forest_depth"])),
            **{name: tensors[name] for name in _HEADS},
        ),
        prices={name: Price(**price) for name, price in saved["prices"].items()},
        threshold=None if threshold is None else float(threshold),
        evidence=dict(saved["evidence"]),
        curve=list(saved["curve"]),
        training=dict(saved["training"]),
        seen=seen,
        cascade=None if cascade is None else CascadeRule.from_dict(cascade),
        verifier=None if verifier is None else Verifier.from_dict(verifier),
        checks_answers=checks_answers,
    )


def _build_forest(tensors: Mapping[str, NDArray[np.float32]], depth: int) -> Forest:
    forest = Forest(
        depth=depth,
        roots_T=tensors["roots_T"].astype(np.intp),
        features_V=tensors["features_V"].astype(np.intp),
        thresholds_V=tensors["thresholds_V"],
        left_V=tensors["left_V"].astype(np.intp),
        values_VM=tensors["values_VM"],
    )
    num_inputs = len(SHAPE) + tensors["topics_HK"].shape[1]
    forest.check(num_inputs, tensors["text_DM"].shape[1])
    return forest


def _read_numbers(packed: zipfile.ZipFile, name: str) -> NDArray[np.float32]:
    tensor: NDArray[np.float32] = _read_array(packed, name).astype(np.float32)
    if not np.isfinite(tensor).all():
        raise ValueError(f"{name} holds what is not a number")
    return tensor


def _read_prints(packed: zipfile.ZipFile) -> NDArray[np.uint64]:
    return _read_array(packed, _SEEN).astype(np.uint64, casting="safe")


def _read_array(packed: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with packed.open(f"{name}.npy") as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array
