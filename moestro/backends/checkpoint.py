"""What a backend must know of a checkpoint without its weights: shape, tokenizer, template, card.

Loads no torch, so that a server can say what it will serve while another process reads the weights.
Next: local.py.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moestro import files
from moestro.api.cards import ModelCard
from moestro.api.sampling import Sampling, SamplingWish
from moestro.errors import CheckpointError, ConfigError
from moestro.gguf_file import GgufFile, is_gguf
from moestro.model.config import ModelConfig
from moestro.model.count import active_parameters, count_parameters
from moestro.text.template import ChatTemplate
from moestro.text.tokenizer import Tokenizer
from moestro.weights.gguf_config import read_config
from moestro.weights.hf_config import build_config

_CONFIG_FILE = "config.json"
_GENERATION_FILE = "generation_config.json"
# What vLLM and SGLang read of it; they pass over do_sample, which old base models have at false.
_RECOMMENDED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_NEUTRAL = Sampling()


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A Hugging Face folder or a GGUF file as a reader and writer of text sees it.

    `stop_ids` are the tokens that end an answer. `has_own_template`: the chat template came with
    the model; a plain one stands in otherwise. `sampling` is what its makers recommend, for
    requests that say nothing of their own.
    """

    folder: Path
    created: int
    shape: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate
    has_own_template: bool
    stop_ids: frozenset[int]
    sampling: Sampling = field(default_factory=Sampling)

    def card(self, name: str, context_length: int) -> ModelCard:
        """Describe the model under the name that it is served by."""
        shape = self.shape
        num_moe_layers = shape.num_hidden_layers - shape.first_k_dense_replace
        return ModelCard(
            id=name,
            created=self.created,
            context_length=context_length,
            fewest_experts=shape.fewest_experts if num_moe_layers else 0,
            most_experts=shape.num_experts_per_tok if num_moe_layers else 0,
            has_budget=shape.has_budget,
            has_fim=self.tokenizer.fim is not None,
            has_chat_template=self.has_own_template,
            num_moe_layers=num_moe_layers,
            num_experts=shape.n_routed_experts,
            num_parameters=count_parameters(shape).total,
            num_active_parameters=round(active_parameters(shape, shape.num_experts_per_tok)),
            default_sampling={
                name: value
                for name in _RECOMMENDED
                if (value := getattr(self.sampling, name)) != getattr(_NEUTRAL, name)
            },
        )


def load_checkpoint(folder: Path) -> Checkpoint:
    """Load what is not weights; CheckpointError names a file that is missing or damaged."""
    path, shape, ends, sampling = _read_shape(folder)
    tokenizer = Tokenizer.load(folder)
    tokenizer.check_fits(shape.vocab_size)
    own = ChatTemplate.load(folder)
    return Checkpoint(
        folder=folder,
        created=int(path.stat().st_mtime),
        shape=shape,
        tokenizer=tokenizer,
        template=own or ChatTemplate.plain(folder),
        has_own_template=own is not None,
        stop_ids=frozenset(
            token for token in {tokenizer.eos_id} | ends if 0 <= token < shape.vocab_size
        ),
        sampling=sampling,
    )


def _read_shape(folder: Path) -> tuple[Path, ModelConfig, set[int], Sampling]:
    """Return the file that says what the model is, its shape, the ids that it ends texts by, and
    how its makers would sample."""
    if is_gguf(folder):
        return folder, read_config(GgufFile(folder)), set(), _NEUTRAL
    path, generation = folder / _CONFIG_FILE, folder / _GENERATION_FILE
    raw = files.read_json(path)
    shape = build_config(path, raw)
    beside = files.read_json(generation) if generation.is_file() else {}
    ends = {token for table in (raw, beside) for token in _end_ids(table)}
    return path, shape, ends, _read_sampling(generation, beside)


def _read_sampling(path: Path, table: dict[str, Any]) -> Sampling:
    given = {name: table[name] for name in _RECOMMENDED if table.get(name) is not None}
    for name, value in given.items():
        if type(value) not in ((int,) if name == "top_k" else (int, float)):
            raise CheckpointError(f"{path}: {name} is {value!r:.80}: it must be a number")
    if "top_k" in given:
        given["top_k"] = max(0, given["top_k"])
    try:
        return SamplingWish(**given).fill(_NEUTRAL)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _end_ids(table: dict[str, Any]) -> list[int]:
    named = table.get("eos_token_id")
    ids = named if isinstance(named, list) else [named]
    return [token for token in ids if type(token) is int]
