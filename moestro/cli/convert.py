"""`moestro convert`: another format or precision, or a budget table for a checkpoint without one.

Next: weights/export.py, weights/quantize.py, weights/gguf_export.py.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moestro import files
from moestro.cli import options
from moestro.errors import ConfigError
from moestro.gguf_file import SUFFIX

if TYPE_CHECKING:
    import torch

    from moestro.lm.language_model import LanguageModel
    from moestro.weights.quantize import Reader

_CALIBRATION_WINDOWS = 64


class Format(StrEnum):
    """Formats of a converted model."""

    HF = "hf"
    GGUF = "gguf"


class Dtype(StrEnum):
    """Number formats of plain weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Quantization(StrEnum):
    """Formats of quantized weights."""

    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"


_Text = Annotated[
    list[Path] | None,
    typer.Option(
        "--text",
        help="Text on which to measure what int8 or int4 costs; else the run's held-out text, or"
        " this Python's library.",
        show_default=False,
    ),
]
_Calibrate = Annotated[
    list[Path] | None,
    typer.Option(
        "--calibrate", help="Sample text from which to learn a budget table.", show_default=False
    ),
]


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What `moestro convert` is to write, and how."""

    model: Path
    dest: Path
    to: Format
    dtype: "torch.dtype | None"
    quantize: Quantization | None
    calibrate: tuple[Path, ...]
    min_experts: int | None

    @property
    def codes(self) -> Literal["int8", "int4"] | None:
        """The kind of codes that matrices become, if any."""
        if self.quantize is None or self.quantize is Quantization.FP8:
            return None
        return "int8" if self.quantize is Quantization.INT8 else "int4"


def convert(
    model: options.Model,
    dest: Annotated[
        Path,
        typer.Argument(
            help="Folder, or .gguf file, to make; it must not exist.", show_default=False
        ),
    ],
    to: Annotated[Format, typer.Option("--to", help="Format of what is written.")] = Format.HF,
    dtype: Annotated[
        Dtype | None,
        typer.Option("--dtype", help="Precision of plain weights.", show_default=False),
    ] = None,
    quantize: Annotated[
        Quantization | None,
        typer.Option(
            "--quantize",
            help="Store matrices as 8- or 4-bit codes, or in DeepSeek's FP8 blocks.",
            show_default=False,
        ),
    ] = None,
    text: _Text = None,
    calibrate: _Calibrate = None,
    min_experts: Annotated[
        int | None,
        typer.Option(
            "--min-experts", help="Fewest experts per token of that table.", show_default=False
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write a model in another format or precision.

    Example: [bold]moestro convert runs/demo demo-int4 --quantize int4[/bold]
    """
    import torch

    wish = Wish(
        model=model,
        dest=dest,
        to=to,
        dtype=None if dtype is None else getattr(torch, dtype.value),
        quantize=quantize,
        calibrate=tuple(calibrate or ()),
        min_experts=min_experts,
    )
    _check(wish, text)
    streams = wish.codes is not None or wish.to is Format.GGUF
    loss = _stream(wish, text or []) if streams else _write_plain(wish)
    result = {"path": str(dest), "bytes": _size(dest)} | loss
    if as_json:
        options.print_json(result)
    else:
        _show(result)


def _check(wish: Wish, text: list[Path] | None) -> None:
    if wish.dest.exists():
        raise ConfigError(f"{wish.dest}: exists already: name a folder to make")
    if wish.min_experts is not None and not wish.calibrate:
        raise ConfigError(f"--min-experts is {wish.min_experts}: it belongs to --calibrate")
    if (wish.to is Format.GGUF) != (wish.dest.suffix == SUFFIX):
        advice = f"name it {wish.dest}{SUFFIX}" if wish.to is Format.GGUF else "add --to gguf"
        raise ConfigError(
            f"{wish.dest}: --to is {wish.to.value}: only a GGUF file ends in {SUFFIX}: {advice}"
        )
    if wish.to is Format.GGUF and wish.quantize is Quantization.FP8:
        raise ConfigError("--quantize is fp8: GGUF has no such blocks: choose int8 or int4")
    if text and wish.codes is None:
        raise ConfigError(f"--text is {text[0]}: it belongs to --quantize int8 or int4")


def _write_plain(wish: Wish) -> dict[str, Any]:
    from moestro.lm.language_model import load
    from moestro.weights.export import copy_companions, save_model
    from moestro.weights.find import find_checkpoint

    lm = load(wish.model, dtype=None, device="cpu", is_packed=False)
    if wish.calibrate:
        _calibrate(lm, wish)
    options.say(f"writing {wish.dest}")
    with files.folder_atomic(wish.dest) as draft:
        copy_companions(find_checkpoint(wish.model), draft)
        save_model(lm.model, draft, dtype=wish.dtype, fp8=wish.quantize is Quantization.FP8)
        lm.tokenizer.save(draft)
    return {}


def _stream(wish: Wish, text: list[Path]) -> dict[str, Any]:
    """Write codes and scales, or a GGUF file, without holding the model; return what codes cost."""
    from moestro.lm import rounding
    from moestro.weights.find import find_checkpoint
    from moestro.weights.load import open_weights
    from moestro.weights.quantize import Reader

    source = find_checkpoint(wish.model)
    config, weights = open_weights(source)
    if wish.calibrate:
        from moestro.lm.language_model import load

        lm = load(wish.model, dtype=None, device="cpu", is_packed=False)
        _calibrate(lm, wish)
        config = lm.config
    # Before the work: text that cannot be read must not be found out after it.
    name, texts = rounding.sample_text(wish.model, text) if wish.codes else ("", [])
    options.say(f"writing {wish.dest}")
    write = _write_gguf if wish.to is Format.GGUF else _write_folder
    write(wish, source, Reader(config, weights))
    if wish.codes is None:
        return {}
    if not rounding.fits_in_memory(config):
        return {"loss": None}
    options.say(f"measuring what it costs, on {name}")
    return {"loss": {"text": name} | rounding.measure(source, wish.dest, texts)}


def _write_folder(wish: Wish, source: Path, reader: "Reader") -> None:
    from moestro.text.tokenizer import Tokenizer
    from moestro.weights.export import copy_companions
    from moestro.weights.quantize import save_quantized

    assert wish.codes is not None
    with files.folder_atomic(wish.dest) as draft:
        copy_companions(source, draft)
        save_quantized(reader, draft, wish.codes, dtype=wish.dtype)
        Tokenizer.load(source).save(draft)


def _write_gguf(wish: Wish, source: Path, reader: "Reader") -> None:
    from moestro.text.gguf_export import write_vocabulary
    from moestro.text.template import ChatTemplate
    from moestro.text.tokenizer import Tokenizer
    from moestro.weights.gguf_export import save_gguf

    tokenizer, template = Tokenizer.load(source), ChatTemplate.load(source)
    tokenizer.check_fits(reader.config.vocab_size)
    vocabulary = write_vocabulary(
        tokenizer, reader.config.vocab_size, template.source if template else None
    )
    with files.file_atomic(wish.dest) as draft:
        save_gguf(reader, draft, wish.codes, vocabulary, name=wish.dest.stem, dtype=wish.dtype)


def _show(result: dict[str, Any]) -> None:
    print(f"{result['path']}: {result['bytes'] / 1e6:.1f} MB")
    if "loss" not in result:
        return
    loss = result["loss"]
    if loss is None:
        print("loss not measured: this machine does not hold the model in float32")
        return
    for when in ("before", "after"):
        found = loss[when]
        print(
            f"{when}: {found['nats_per_token']:.4f} nats/token,"
            f" perplexity {found['perplexity']:.3f}"
        )
    rise, tokens = loss["perplexity_rise"], loss["tokens"]
    print(f"perplexity {rise:+.2%} on {tokens:,} tokens of {loss['text']}")


def _size(path: Path) -> int:
    each = [path] if path.is_file() else path.iterdir()
    return sum(file.stat().st_size for file in each)


def _calibrate(lm: "LanguageModel", wish: Wish) -> None:
    import torch

    from moestro.data.config import DataConfig
    from moestro.data.corpus import read_corpus
    from moestro.train.calibrate import calibrate

    options.say("learning a budget table")
    corpus = read_corpus(DataConfig(paths=tuple(map(str, wish.calibrate)), min_bytes=1))
    ids = [lm.tokenizer.bos_id]
    for tokens in lm.tokenizer.encode_batch([document.text for document in corpus.documents]):
        ids += [*tokens, lm.tokenizer.eos_id]
    length = min(lm.config.max_position_embeddings, 512, len(ids))
    num_windows = min(_CALIBRATION_WINDOWS, len(ids) // length)
    sample = torch.tensor(ids[: num_windows * length]).view(num_windows, length)
    fewest = lm.config.min_experts_per_tok if wish.min_experts is None else wish.min_experts
    if fewest is None:
        fewest = max(1, lm.config.num_experts_per_tok // 2)
    calibrate(lm.model, sample, fewest)
