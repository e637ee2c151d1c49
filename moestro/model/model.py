"""READ FIRST: the whole model, embed -> blocks -> norm -> head.

One device, no files. The caller says where latents go (`cache`), how many experts tokens may take
(`budget`) and what to record (`trace`). Next: block.py.

Shapes: B sequences, S tokens, D width, V vocabulary, P rotary pairs, T = B * S.
"""

import torch
from torch import Tensor, nn

from moestro.errors import ConfigError
from moestro.model.block import Block
from moestro.model.cache import Cache, NoCache
from moestro.model.config import ModelConfig
from moestro.model.context import Context
from moestro.model.gate import Gate
from moestro.model.linear import Embedding, Linear, RMSNorm
from moestro.model.mtp import MTPModule
from moestro.model.trace import Trace
from moestro.ops import rope
from moestro.ops.kernels import Packed
from moestro.ops.latent import AttentionPath
from moestro.ops.products import linear
from moestro.ops.stack import NativeStack


class Transformer(nn.Module):
    """A DeepSeek-V3 or -V2 language model; `dtype` of its arithmetic follows `compute_dtype`."""

    frequencies_P: Tensor

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = (
            None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size)
        )
        self.mtp = nn.ModuleList(
            MTPModule(config, k) for k in range(config.num_nextn_predict_layers)
        )
        self.packed_head: Packed | None = None
        self.stack: NativeStack | None = None
        self.register_buffer("frequencies_P", torch.empty(0), persistent=False)
        self.reset_tables()

    def reset_tables(self) -> None:
        """Recompute what follows from the configuration: rotary frequencies and budget tables."""
        # On the CPU whatever device is the default: torch imports its compiler to compute on meta.
        with torch.device("cpu"):
            table = self._frequencies()
        self.frequencies_P = table.to(self.embed_tokens.weight.device)
        for gate in self.gates():
            gate.reset_tables()

    def forward(
        self,
        tokens_BS: Tensor,
        *,
        budget: float | Tensor | None = None,
        cache: Cache | None = None,
        trace: Trace | None = None,
        path: AttentionPath = "auto",
        row_multiple: int = 1,
    ) -> Tensor:
        """Return the normed hidden_BSD behind each token; `logits` turns it into predictions.

        `budget` is the mean number of experts per token, one number, one per sequence or one per
        token; None takes all. For `row_multiple` see ops/rows.py.
        """
        cache = NoCache() if cache is None else cache
        context = self._context(tokens_BS, budget, cache, trace, path, row_multiple)
        x_BSD = self.embed(tokens_BS)
        for block in self.layers:
            x_BSD = block(x_BSD, context)
        cache.advance(tokens_BS.shape[1])
        hidden_BSD: Tensor = self.norm(x_BSD)
        return hidden_BSD

    def look_ahead(
        self,
        hidden_BSD: Tensor,
        next_BS: Tensor,
        depth: int,
        *,
        budget: float | Tensor | None = None,
        cache: Cache | None = None,
        trace: Trace | None = None,
        row_multiple: int = 1,
    ) -> Tensor:
        """Run MTP module `depth` over hidden states and the token after each."""
        cache = NoCache() if cache is None else cache
        context = self._context(next_BS, budget, cache, trace, "auto", row_multiple)
        out: Tensor = self.mtp[depth](hidden_BSD, self.embed(next_BS), context)
        return out

    def embed(self, tokens_BS: Tensor) -> Tensor:
        """Look tokens up, in the dtype of the arithmetic."""
        embedded: Tensor = self.embed_tokens(tokens_BS)
        return embedded.to(self.compute_dtype)

    def head_weight(self) -> Tensor:
        """Return the head's matrix (V, D), in the dtype of the arithmetic."""
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        return head.weight.to(self.compute_dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits over the vocabulary for hidden states of any leading shape."""
        if self.packed_head is not None:
            return self.packed_head.linear(hidden).float()
        return linear(hidden, self.head_weight()).float()

    @property
    def cache_dtype(self) -> torch.dtype:
        """What cached latents are kept in."""
        return self.compute_dtype if self.stack is None else self.stack.cache_dtype

    @property
    def is_prepared(self) -> bool:
        """Whether the matrices are packed for the kernels (prepare.py)."""
        return self.packed_head is not None

    def gates(self) -> list[Gate]:
        """Return the gates in the order of the MoE layers, MTP modules' last."""
        return [module for module in self.modules() if isinstance(module, Gate)]

    def _frequencies(self) -> Tensor:
        stretch, dim = self.config.rope, self.config.qk_rope_head_dim
        if stretch.kind != "yarn":
            return rope.frequencies(dim, stretch.theta)
        turns = (stretch.beta_fast, stretch.beta_slow)
        length = stretch.original_max_position_embeddings
        return rope.yarn_frequencies(
            dim, stretch.theta, stretch.factor, length, turns, stretch.truncate
        )

    def _context(
        self,
        tokens_BS: Tensor,
        budget: float | Tensor | None,
        cache: Cache,
        trace: Trace | None,
        path: AttentionPath,
        row_multiple: int,
    ) -> Context:
        positions_S = cache.positions(tokens_BS.shape[1], tokens_BS.device)
        cos_SP, sin_SP = rope.angles(positions_S, self.frequencies_P, attention_factor(self.config))
        return Context(
            cos_SP=cos_SP,
            sin_SP=sin_SP,
            cache=cache,
            path=path,
            fraction_T=None if budget is None else self.fractions(budget, tokens_BS),
            trace=trace,
            row_multiple=row_multiple,
        )

    def fractions(self, budget: float | Tensor, tokens_BS: Tensor) -> Tensor:
        """Return each token's budget as a share of the way from the fewest experts to the most."""
        fewest, most = self.config.fewest_experts, self.config.num_experts_per_tok
        budgets = torch.as_tensor(budget, dtype=torch.float32, device=self.frequencies_P.device)
        low, high = (float(end) for end in budgets.aminmax())
        # Not "low < fewest or high > most": a NaN is no budget.
        if not (fewest <= low and high <= most):
            raise ConfigError(
                f"budget is {budget}: this model takes {fewest} to {most} experts per token"
            )
        fractions = (budgets - fewest) / max(most - fewest, 1)
        if fractions.dim() == 1:
            fractions = fractions[:, None]
        return fractions.expand(tokens_BS.shape).flatten().contiguous()


def attention_factor(config: ModelConfig) -> float:
    """Return YaRN's factor on the rotary tables: given, or as the reference derives it."""
    stretch = config.rope
    if stretch.kind != "yarn":
        return 1.0
    if stretch.attention_factor is not None:
        return stretch.attention_factor
    if stretch.mscale and stretch.mscale_all_dim:
        above = rope.yarn_mscale(stretch.factor, stretch.mscale)
        return above / rope.yarn_mscale(stretch.factor, stretch.mscale_all_dim)
    return rope.yarn_mscale(stretch.factor)
