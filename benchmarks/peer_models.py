"""The models of the comparison with peers: real shapes, random weights, in every peer's format.

Written tensor by tensor from one pool of random numbers, so that 16 G parameters take seconds to
draw. Scales are such that every layer matters and logits stay finite; the gates' scores vary as
much between tokens as between experts, so that all experts are visited.
"""

import dataclasses
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from experiment import said
from torch import Tensor

from moestro import files, settings
from moestro.model.config import BudgetConfig, ModelConfig
from moestro.model.model import Transformer
from moestro.model.presets import preset_tables
from moestro.ops.quantize import Kind
from moestro.text.learn import learn
from moestro.text.tokenizer import Tokenizer
from moestro.weights.export import MAX_SHARD_BYTES, config_json, write_generation
from moestro.weights.load import open_weights
from moestro.weights.names import Piece, pieces
from moestro.weights.quantize import Reader, save_quantized
from moestro.weights.store import CONFIG_FILE, Outgoing, save_tensors

_POOL = 2**26
# One more than any multiple of a row's length, so that no two tensors begin alike.
_STRIDE = 7_654_321
_LENGTH = 8192
_WRITES_TO_STREAM = ("o_proj.weight", "down_proj.weight")


def model_config(preset: str) -> ModelConfig:
    """Return a preset's shape as all peers can run it.

    Without MTP modules, which only we run; with a budget table of two entries, half of the experts
    and all, which the others ignore; long enough for a prompt of 4,096 tokens and an answer.
    """
    shape = settings.build(ModelConfig, preset_tables(preset))
    num_sparse = shape.num_hidden_layers - shape.first_k_dense_replace
    # A further expert's distance to the last certain one is below 0 and above -1.
    table = BudgetConfig(fractions=(0.0, 1.0), thresholds=((0.0, -1.0),) * num_sparse)
    return dataclasses.replace(
        shape,
        num_nextn_predict_layers=0,
        min_experts_per_tok=shape.num_experts_per_tok // 2,
        max_position_embeddings=max(shape.max_position_embeddings, _LENGTH),
        bos_token_id=0,
        eos_token_id=0,
        budget=table,
    )


def write_folder(preset: str, folder: Path) -> None:
    """Write a Hugging Face folder with random weights in bfloat16."""
    config = model_config(preset)
    with files.folder_atomic(folder) as draft:
        save_tensors(draft, list(_tensors(config)), MAX_SHARD_BYTES)
        files.write_json(draft / CONFIG_FILE, config_json(config, torch.bfloat16))
        write_generation(config, draft)
        # Nobody reads text here, but a model has a tokenizer, and to llama.cpp one has merges.
        learn(["peers and peers"], 300).save(draft)


def _tensors(config: ModelConfig) -> Iterator[Outgoing]:
    pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(0))
    with torch.device("meta"):
        model = Transformer(config)
    state, weights = model.state_dict(), {name for name, _ in model.named_parameters()}
    for number, piece in enumerate(pieces(config)):
        shape = piece.shape(state[piece.key])
        dtype = torch.bfloat16 if piece.key in weights else state[piece.key].dtype
        yield Outgoing(piece.hf_name, dtype, shape, _maker(config, piece, shape, number, pool))


def _maker(
    config: ModelConfig, piece: Piece, shape: tuple[int, ...], number: int, pool: Tensor
) -> Callable[[], Tensor]:
    if len(shape) == 1:
        is_norm = piece.hf_name.endswith("norm.weight")
        return lambda: torch.ones(shape) if is_norm else torch.zeros(shape)
    std = 1.0 if piece.hf_name.endswith("embed_tokens.weight") else 1 / math.sqrt(shape[-1])
    if piece.hf_name.endswith(_WRITES_TO_STREAM):
        std /= math.sqrt(2 * config.num_hidden_layers)
    return lambda: (_draw(pool, number, math.prod(shape)) * std).view(shape)


def _draw(pool: Tensor, number: int, size: int) -> Tensor:
    """Return numbers from a place of its own in the pool; a tensor beyond its size repeats it."""
    if size > _POOL:
        return pool.repeat(-(-size // _POOL))[:size]
    start = number * _STRIDE % (_POOL - size + 1)
    return pool[start : start + size]


def quantize_folder(source: Path, dest: Path, kind: Kind) -> None:
    """Write a folder with our codes, unless it is there.

    Not through the command, which also measures what that costs on text: here it says nothing.
    """
    if not dest.exists():
        with said(f"writing {dest}"), files.folder_atomic(dest) as draft:
            save_quantized(Reader(*open_weights(source)), draft, kind)
            Tokenizer.load(source).save(draft)


def convert_gguf(source: Path, dest: Path) -> None:
    """Let `moestro convert` write a GGUF file, unless it is there."""
    if not dest.exists():
        command = [sys.executable, "-m", "moestro", "convert", str(source), str(dest)]
        with said(f"writing {dest}"):
            subprocess.run([*command, "--to", "gguf"], check=True, stdout=sys.stderr)


def quantize_gguf(python: Path, source: Path, dest: Path) -> None:
    """Let llama.cpp's own function write another GGUF format, unless it is there."""
    if not dest.exists():
        script = Path(__file__).parent / "peer_workers" / "quantize_gguf.py"
        draft = dest.with_suffix(".draft")
        with said(f"writing {dest}"):
            command = [str(python), str(script), str(source), str(draft), dest.stem]
            subprocess.run(command, check=True, stdout=sys.stderr, stderr=subprocess.DEVNULL)
        draft.rename(dest)


def remove(path: Path) -> None:
    """Remove a model that is not needed any more."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
