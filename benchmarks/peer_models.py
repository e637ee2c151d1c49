"""The models of the comparison with peers: real shapes, random weights, in every peer's format.

Drawn tensor by tensor from one pool of random numbers, which is rounded once for all, so that 16 G
parameters take seconds to draw and no room but that of the format in which they are written. Scales
are such that every layer matters and logits stay finite; the gates' scores vary as much between
tokens as between experts, so that all experts are visited.
"""

import dataclasses
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from experiment import said
from torch import Tensor

from moestro import files, settings
from moestro.model.config import BudgetConfig, ModelConfig
from moestro.model.count import count_parameters
from moestro.model.model import Transformer
from moestro.model.presets import preset_tables
from moestro.ops.quantize import GROUP, Kind, Quantized, codes_shape, quantize, scales_shape
from moestro.text.gguf_export import write_vocabulary
from moestro.text.learn import learn
from moestro.text.tokenizer import Tokenizer
from moestro.weights.export import MAX_SHARD_BYTES, config_json, write_generation
from moestro.weights.gguf_export import save_gguf
from moestro.weights.names import pieces
from moestro.weights.quantize import Reader, save_quantized, target
from moestro.weights.store import CONFIG_FILE, Outgoing, save_tensors
from moestro.weights.stored import Stored

_POOL = 2**26
# Whole groups, and no multiple of a row's length, so that no two tensors begin alike.
_STRIDE = 239_197 * GROUP
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


def model_bytes(preset: str) -> int:
    """Return what a preset's weights take in bfloat16."""
    return 2 * count_parameters(model_config(preset)).total


def write_folder(preset: str, folder: Path) -> None:
    """Write a Hugging Face folder with random weights in bfloat16, unless it is there."""
    if folder.exists():
        return
    config, weights = model_config(preset), RandomWeights(preset)
    with said(f"writing {folder}"), files.folder_atomic(folder) as draft:
        save_tensors(draft, list(weights.outgoing()), MAX_SHARD_BYTES)
        files.write_json(draft / CONFIG_FILE, config_json(config, torch.bfloat16))
        write_generation(config, draft)
        _tokenizer().save(draft)


class RandomWeights:
    """A checkpoint that lies nowhere: each weight is drawn when it is read, always the same.

    With a `kind` it has codes as save_quantized would make them, but of the pool.
    """

    path = Path("random weights")

    def __init__(self, preset: str, kind: Kind | None = None) -> None:
        self._kind = kind
        self._codes: dict[Kind, Quantized] = {}
        self._config = model_config(preset)
        self._pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(0))
        with torch.device("meta"):
            model = Transformer(self._config)
        self._state = model.state_dict()
        self._weights = {name for name, _ in model.named_parameters()}
        self._pieces = {piece.hf_name: piece for piece in pieces(self._config)}
        self._numbers = {name: number for number, name in enumerate(self._pieces)}

    def names(self) -> list[str]:
        """Return the names of all weights."""
        return list(self._pieces)

    def stored(self, name: str, shape: tuple[int, ...]) -> Stored:
        """Say how to draw a weight, as numbers or as codes."""
        piece = self._pieces[name]
        form = "plain" if self._kind is None else target(piece, self._kind)
        if len(shape) == 1 or form == "plain" or form == "float32" or shape[-1] % GROUP:
            return Stored("plain", self._dtype(name), lambda: self._draw(name, shape))
        return Stored(
            form,
            torch.float32,
            lambda: self._draw(name, shape),
            lambda: self._draw_codes(name, shape, form),
        )

    def file(self, name: str) -> Path:
        """Return no file's name."""
        return self.path

    def outgoing(self) -> Iterator[Outgoing]:
        """Yield each weight as it is written to a folder."""
        for name, piece in self._pieces.items():
            shape = piece.shape(self._state[piece.key])
            yield Outgoing(name, self._dtype(name), shape, partial(self._draw, name, shape))

    def _dtype(self, name: str) -> torch.dtype:
        key = self._pieces[name].key
        return torch.bfloat16 if key in self._weights else self._state[key].dtype

    def _draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            return torch.ones(shape) if name.endswith("norm.weight") else torch.zeros(shape)
        numbers = _take(self._pool, self._numbers[name], math.prod(shape), 1)
        return (numbers * self._std(name, shape)).view(shape)

    def _draw_codes(self, name: str, shape: tuple[int, ...], kind: Kind) -> Quantized:
        if kind not in self._codes:
            self._codes[kind] = quantize(self._pool[None], kind)
        pool, number, size = self._codes[kind], self._numbers[name], math.prod(shape)
        codes = _take(pool.codes[0], number, size, _POOL // pool.codes.shape[1])
        scales = _take(pool.scales[0], number, size, GROUP).float() * self._std(name, shape)
        return Quantized(
            codes.view(codes_shape(shape, kind)),
            scales.half().view(scales_shape(shape)),
            shape[-1],
            kind,
        )

    def _std(self, name: str, shape: tuple[int, ...]) -> float:
        if name.endswith("embed_tokens.weight"):
            return 1.0
        std = 1 / math.sqrt(shape[-1])
        is_added = name.endswith(_WRITES_TO_STREAM)
        return std / math.sqrt(2 * self._config.num_hidden_layers) if is_added else std


def _take(pool: Tensor, number: int, size: int, each: int) -> Tensor:
    """Return what belongs to `size` numbers from a place of its own, `each` numbers an entry.

    One beyond the pool's size repeats it.
    """
    if size > _POOL:
        return pool.repeat(-(-size // _POOL))[: size // each]
    start = number * _STRIDE % (_POOL - size + GROUP) // GROUP * GROUP
    return pool[start // each : (start + size) // each]


def write_quantized(preset: str, dest: Path, kind: Kind) -> None:
    """Write a folder with our codes, unless it is there; no other folder is needed for it."""
    if not dest.exists():
        with said(f"writing {dest}"), files.folder_atomic(dest) as draft:
            save_quantized(_reader(preset, kind), draft, kind, dtype=torch.bfloat16)
            _tokenizer().save(draft)


def write_gguf(preset: str, dest: Path, kind: Kind | None = None) -> None:
    """Write a GGUF file, plain or in llama.cpp's codes of a kind, unless it is there."""
    if not dest.exists():
        reader = _reader(preset, kind)
        vocabulary = write_vocabulary(_tokenizer(), reader.config.vocab_size, None)
        with said(f"writing {dest}"), files.file_atomic(dest) as draft:
            save_gguf(reader, draft, kind, vocabulary, name=dest.stem, dtype=torch.bfloat16)


def quantize_gguf(python: Path, source: Path, dest: Path) -> None:
    """Let llama.cpp's own function write another GGUF format, unless it is there."""
    if not dest.exists():
        script = Path(__file__).parent / "peer_workers" / "quantize_gguf.py"
        draft = dest.with_suffix(".draft")
        with said(f"writing {dest}"):
            command = [str(python), str(script), str(source), str(draft), dest.stem]
            subprocess.run(command, check=True, stdout=sys.stderr, stderr=subprocess.DEVNULL)
        draft.rename(dest)


def _reader(preset: str, kind: Kind | None) -> Reader:
    return Reader(model_config(preset), RandomWeights(preset, kind))


def _tokenizer() -> Tokenizer:
    # Nobody reads or writes text here, but a model has a tokenizer, and llama.cpp wants merges.
    return learn(["peers and peers"], 300)


def remove(path: Path) -> None:
    """Remove a model that is not needed any more."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
