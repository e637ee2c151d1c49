"""What a backend must know of a checkpoint without its weights: shape, tokenizer, template, card.

Loads no torch, so that a server can say what it will serve while another process reads the weights.
Next: local.py.
"""

from dataclasses import dataclass, field
from pathlib import Path

from moestro import files
from moestro.api.cards import ModelCard
from moestro.api.sampling import Sampling
from moestro.gguf_file import GgufFile, is_gguf
from moestro.model.config import ModelConfig
from moestro.model.count import active_parameters, count_parameters
from moestro.text.template import ChatTemplate
from moestro.text.tokenizer import Tokenizer
from moestro.weights.generation import RECOMMENDED, read_sampling, read_stop_ids
from moestro.weights.gguf_config import read_config
from moestro.weights.hf_config import build_config

_CONFIG_FILE = "config.json"
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
                for name in RECOMMENDED
                if (value := getattr(self.sampling, name)) != getattr(_NEUTRAL, name)
            },
        )


def load_checkpoint(folder: Path) -> Checkpoint:
    """Load what is not weights; CheckpointError names a file that is missing or damaged."""
    path, shape = _read_shape(folder)
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
        stop_ids=read_stop_ids(folder, tokenizer.eos_id, shape.vocab_size),
        sampling=read_sampling(folder),
    )


def _read_shape(folder: Path) -> tuple[Path, ModelConfig]:
    """Return the file that says what the model is, and its shape."""
    if is_gguf(folder):
        return folder, read_config(GgufFile(folder))
    path = folder / _CONFIG_FILE
    return path, build_config(path, files.read_json(path))
