"""`moestro convert`: another precision, or a budget table for a checkpoint without one.

Next: weights/export.py.
"""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moestro import files
from moestro.cli import options
from moestro.errors import ConfigError

if TYPE_CHECKING:
    from moestro.lm.language_model import LanguageModel

_CALIBRATION_WINDOWS = 64


class Format(StrEnum):
    """Formats of a converted model."""

    HF = "hf"


class Dtype(StrEnum):
    """Number formats of plain weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Quantization(StrEnum):
    """Formats of quantized weights."""

    FP8 = "fp8"


def convert(
    model: options.Model,
    dest: Annotated[
        Path, typer.Argument(help="Folder to make; it must not exist.", show_default=False)
    ],
    to: Annotated[Format, typer.Option("--to", help="Format of the new folder.")] = Format.HF,
    dtype: Annotated[
        Dtype | None,
        typer.Option("--dtype", help="Precision of plain weights.", show_default=False),
    ] = None,
    quantize: Annotated[
        Quantization | None,
        typer.Option(
            "--quantize", help="Store matrices in DeepSeek's FP8 blocks.", show_default=False
        ),
    ] = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(
            "--calibrate",
            help="Sample text from which to learn a budget table.",
            show_default=False,
        ),
    ] = None,
    min_experts: Annotated[
        int | None,
        typer.Option(
            "--min-experts", help="Fewest experts per token of that table.", show_default=False
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write a model as a Hugging Face folder that any deepseek_v3 program loads.

    Example: [bold]moestro convert runs/demo demo-bf16 --dtype bfloat16[/bold]
    """
    import torch

    from moestro.lm.language_model import load
    from moestro.weights.export import save_model

    assert to is Format.HF
    if dest.exists():
        raise ConfigError(f"{dest}: exists already: name a folder to make")
    if min_experts is not None and not calibrate:
        raise ConfigError(f"--min-experts is {min_experts}: it belongs to --calibrate")
    lm = load(model, dtype=None, device="cpu")
    if calibrate:
        _calibrate(lm, calibrate, min_experts)
    with files.folder_atomic(dest) as draft:
        kind = None if dtype is None else getattr(torch, dtype.value)
        save_model(lm.model, draft, dtype=kind, fp8=quantize is Quantization.FP8)
        lm.tokenizer.save(draft)
    result: dict[str, Any] = {
        "path": str(dest),
        "bytes": sum(path.stat().st_size for path in dest.iterdir()),
    }
    if as_json:
        options.print_json(result)
    else:
        print(f"{dest}: {result['bytes'] / 1e6:.1f} MB")


def _calibrate(lm: "LanguageModel", paths: list[Path], min_experts: int | None) -> None:
    import torch

    from moestro.data.config import DataConfig
    from moestro.data.corpus import read_corpus
    from moestro.train.calibrate import calibrate

    corpus = read_corpus(DataConfig(paths=tuple(map(str, paths)), min_bytes=1))
    ids = [lm.tokenizer.bos_id]
    for tokens in lm.tokenizer.encode_batch([document.text for document in corpus.documents]):
        ids += [*tokens, lm.tokenizer.eos_id]
    length = min(lm.config.max_position_embeddings, 512, len(ids))
    num_windows = min(_CALIBRATION_WINDOWS, len(ids) // length)
    sample = torch.tensor(ids[: num_windows * length]).view(num_windows, length)
    fewest = lm.config.min_experts_per_tok if min_experts is None else min_experts
    if fewest is None:
        fewest = max(1, lm.config.num_experts_per_tok // 2)
    calibrate(lm.model, sample, fewest)
