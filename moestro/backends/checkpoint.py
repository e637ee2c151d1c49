"""What a backend must know of a checkpoint without its weights: shape, tokenizer, template, card.

Loads no torch, so that a server can say what it will serve while another process reads the weights.
Next: local.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moestro import files
from moestro.api.cards import ModelCard
from moestro.gguf_file import SUFFIX, GgufFile
from moestro.model.config import ModelConfig
from moestro.model.count import active_parameters, count_parameters
from moestro.text.template import ChatTemplate
from moestro.text.tokenizer import Tokenizer
from moestro.weights.gguf_config import read_config
from moestro.weights.hf_config import build_config

_CONFIG_FILE = "config.json"
_GENERATION_FILE = "generation_config.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A Hugging Face folder or a GGUF file as a reader and writer of text sees it.

    `stop_ids` are the tokens that end an answer. `has_own_template`: the chat template came with
    the model; a plain one stands in otherwise.
    """

    folder: Path
    created: int
    shape: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate
    has_own_template: bool
    stop_ids: frozenset[int]

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
        )


def load_checkpoint(folder: Path) -> Checkpoint:
    """Load what is not weights; CheckpointError names a file that is missing or damaged."""
    path, shape, ends = _read_shape(folder)
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
    )


def _read_shape(folder: Path) -> tuple[Path, ModelConfig, set[int]]:
    """Return the file that says what the model is, its shape, and the ids that it ends texts by."""
    if folder.suffix == SUFFIX and folder.is_file():
        return folder, read_config(GgufFile(folder)), set()
    path, generation = folder / _CONFIG_FILE, folder / _GENERATION_FILE
    raw = files.read_json(path)
    shape = build_config(path, raw)
    named = [raw, files.read_json(generation) if generation.is_file() else {}]
    return path, shape, {token for table in named for token in _end_ids(table)}


def _end_ids(table: dict[str, Any]) -> list[int]:
    named = table.get("eos_token_id")
    ids = named if isinstance(named, list) else [named]
    return [token for token in ids if type(token) is int]
