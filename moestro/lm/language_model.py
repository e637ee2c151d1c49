"""READ FIRST: one checkpoint, ready to complete and to score text: what `moestro.load` returns.

Ties a tokenizer to a model; an engine writes the answers, one at a time here, many at once behind a
server. Next: engine/engine.py, xray.py.

Shapes: T tokens, V vocabulary.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from moestro.api.sampling import Sampling
from moestro.engine.config import CacheConfig, EngineConfig
from moestro.engine.engine import Engine
from moestro.engine.request import EngineRequest, FailEvent, TokensEvent
from moestro.engine.runner import choose_row_multiples
from moestro.errors import CheckpointError, ConfigError, DataError
from moestro.model.config import ModelConfig
from moestro.model.model import Transformer
from moestro.ops.choose import chosen_kernels
from moestro.ops.machine import default_device, fastest_dtype
from moestro.ops.panels import WeightKind
from moestro.ops.rows import RowMultiples
from moestro.text.tokenizer import Tokenizer
from moestro.train.evaluate import Evaluation, TokenDocument, check_finite, evaluate
from moestro.weights.find import find_checkpoint
from moestro.weights.generation import read_stop_ids
from moestro.weights.load import load_model
from moestro.weights.packed import holds_codes, load_packed


@dataclass(frozen=True)
class Generated:
    """One new token, and the routed experts that its prediction took, mean over layers."""

    token: int
    mean_experts: float | None


@dataclass(frozen=True)
class Completion:
    """What a model wrote behind a prompt: text, token ids, and their mean routed experts."""

    text: str
    tokens: list[int]
    mean_experts: float | None


class LanguageModel:
    """A model and its tokenizer; `stop_ids` end a text as well as the tokenizer's own end does."""

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, stop_ids: Collection[int] = ()
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.stop_ids = frozenset(stop_ids) | {tokenizer.eos_id}

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.model.config

    @torch.no_grad()
    def logits(self, token_ids: Sequence[int], experts: float | None = None) -> np.ndarray:
        """Return the float32 logits (T, V) behind each of the given tokens, as they are."""
        if not len(token_ids):
            raise DataError("no tokens given: logits need at least one")
        ids = [int(token) for token in token_ids]
        outside = [token for token in ids if not 0 <= token < self.config.vocab_size]
        if outside:
            raise DataError(
                f"token {outside[0]} is outside the vocabulary of {self.config.vocab_size}"
            )
        self._check_length(len(ids), "the text")
        tokens_BS = torch.tensor([ids], device=self.model.embed_tokens.weight.device)
        hidden_BSD = self.model(tokens_BS, budget=self.check_experts(experts))
        return self.model.logits(hidden_BSD[0]).cpu().numpy()

    def generate(
        self,
        prompt: str,
        *,
        suffix: str | None = None,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        experts: float | None = None,
    ) -> Completion:
        """Complete a prompt or fill the gap before `suffix`, to the text's end or `max_tokens`."""
        made = list(
            self.stream(
                prompt,
                suffix=suffix,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                experts=experts,
            )
        )
        tokens = [item.token for item in made]
        taken = [item.mean_experts for item in made if item.mean_experts is not None]
        mean = sum(taken) / len(taken) if taken else None
        return Completion(self.tokenizer.decode(tokens, continues=True), tokens, mean)

    def stream(
        self,
        prompt: str,
        *,
        suffix: str | None = None,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        experts: float | None = None,
    ) -> Iterator[Generated]:
        """Return tokens one by one, up to one that ends a text or the end of the model's context.

        Whatever is wrong with the wishes is said at once, before the first token is asked for.
        """
        if max_tokens < 1:
            raise ConfigError(f"max_tokens is {max_tokens}: ask for at least 1")
        ids = self._prompt_ids(prompt, suffix)
        self._check_length(len(ids) + 1, "the prompt with room for an answer")
        request = EngineRequest(
            id="",
            prompt=tuple(ids),
            max_tokens=min(max_tokens, self.config.max_position_embeddings - len(ids)),
            sampling=Sampling(temperature=temperature, top_p=top_p, seed=seed),
            stop_token_ids=self.stop_ids,
            experts=self.check_experts(experts),
        )
        return self._follow(request)

    def score(self, texts: str | Sequence[str], experts: float | None = None) -> Evaluation:
        """Measure how well the model predicts a document, or several, each on its own.

        CheckpointError where its weights give no numbers.
        """
        # A text is a sequence of texts too: of one character each.
        texts = [texts] if isinstance(texts, str) else texts
        ids = self.tokenizer.encode_batch(list(texts))
        pairs = zip(texts, ids, strict=True)
        documents = [TokenDocument(tokens, len(text.encode())) for text, tokens in pairs]
        budget = self.check_experts(experts)
        found = evaluate(self.model, documents, start_id=self.tokenizer.bos_id, budget=budget)
        check_finite((found.nats,))
        return found

    def check_experts(self, experts: float | None) -> float | None:
        """Return the budget that a request asks for; ConfigError if this model cannot keep it."""
        fewest, most = self.config.fewest_experts, self.config.num_experts_per_tok
        if experts is None or experts == most:
            return None
        if not fewest <= experts <= most:
            raise ConfigError(
                f"experts is {experts}: this model takes {fewest} to {most} per token"
            )
        if not self.config.has_budget:
            raise ConfigError(
                f"experts is {experts}, but this checkpoint has no budget table: calibrate it first"
                " (moestro convert --calibrate)"
            )
        return experts

    def _follow(self, request: EngineRequest) -> Iterator[Generated]:
        """Yield the tokens of the one request of an engine of its own, without the stop token."""
        size = CacheConfig(num_tokens=max(len(request.prompt) + request.max_tokens, 64) + 64)
        config = EngineConfig(max_batch=1, cache=size)
        engine = Engine(self.model, config, multiples=self._multiples)
        engine.submit(request)
        while engine.has_work:
            for event in engine.step():
                if isinstance(event, FailEvent):
                    raise CheckpointError(event.message)
                made = event.tokens() if isinstance(event, TokensEvent) else ()
                told = (new for new in made if new.finish != "stop")
                yield from (Generated(new.score.token_id, new.num_experts) for new in told)

    @cached_property
    def _multiples(self) -> RowMultiples:
        return choose_row_multiples(self.model)

    def _prompt_ids(self, prompt: str, suffix: str | None) -> list[int]:
        ids = self.tokenizer.encode(prompt)
        if suffix is not None:
            if self.tokenizer.fim is None:
                raise ConfigError(
                    "this model's tokenizer has no fill-in-the-middle tokens: leave out suffix"
                )
            ids = self.tokenizer.fim.prompt(ids, self.tokenizer.encode(suffix))
        return [self.tokenizer.bos_id, *ids]

    def _check_length(self, num_tokens: int, what: str) -> None:
        limit = self.config.max_position_embeddings
        if num_tokens > limit:
            raise DataError(f"{what} takes {num_tokens} tokens, limit {limit}: shorten it")


def load(
    path: str | Path,
    *,
    dtype: str | None = "float32",
    device: str | None = None,
    is_packed: bool | None = None,
) -> LanguageModel:
    """Load a run folder, a checkpoint or a Hugging Face folder.

    `dtype` is "float32", "bfloat16", "auto" for the faster of the two on this machine, or None for
    the checkpoint's own. `is_packed` runs it on the native kernels, where there are any: None does
    so for a checkpoint in codes, whose numbers are then those that a server gives.
    """
    folder = find_checkpoint(Path(path))
    place = device or default_device()
    kinds = {None: None, "float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype not in kinds and dtype != "auto":
        raise ConfigError(f"dtype is {dtype!r}: choose float32, bfloat16 or auto")
    # First: who lacks it should not wait for the weights.
    tokenizer = Tokenizer.load(folder)
    chosen = chosen_kernels() if place == "cpu" and is_packed is not False else None
    if chosen and chosen.is_native and (is_packed or holds_codes(folder)):
        wishes: dict[str | None, WeightKind] = {"float32": "float32", "bfloat16": "bfloat16"}
        model = load_packed(folder, chosen.kernels, wishes.get(dtype))
    else:
        plain = fastest_dtype(place) if dtype == "auto" else kinds[dtype]
        model = load_model(folder, plain, place)
    vocab_size = model.config.vocab_size
    tokenizer.check_fits(vocab_size)
    stop_ids = read_stop_ids(folder, tokenizer.eos_id, vocab_size)
    return LanguageModel(model, tokenizer, stop_ids)
