"""Each token of a text with the experts that it visited, and how much it surprised the model.

`xray` measures, `write_page` shows: one page that opens offline. Next: language_model.py,
model/trace.py.

Shapes: T tokens of the text, S = T + 1 with the one that begins it, K slots per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, StrictUndefined

from moestro import files
from moestro.errors import DataError
from moestro.lm.language_model import LanguageModel
from moestro.model.trace import GateRecord, Trace
from moestro.train.evaluate import check_finite, nats_of

# A browser shows more only slowly, and nobody clicks through more.
PAGE_TOKENS = 5000


@dataclass(frozen=True, kw_only=True)
class ExpertUse:
    """One expert that a token visited, and the weight of what it said."""

    expert: int
    weight: float


@dataclass(frozen=True, kw_only=True)
class TokenView:
    """A token: its text, its nats given all before it, and its experts in each MoE layer."""

    text: str
    nats: float
    experts: list[list[ExpertUse]]

    @property
    def mean_experts(self) -> float | None:
        """Routed experts, mean over layers; None for a dense model."""
        return sum(map(len, self.experts)) / len(self.experts) if self.experts else None

    def to_dict(self) -> dict[str, Any]:
        """Return what `moestro xray --json` prints for a token."""
        return {
            "text": self.text,
            "nats": self.nats,
            "experts": [[vars(use) for use in layer] for layer in self.experts],
        }


@torch.no_grad()
def xray(lm: LanguageModel, text: str, experts: float | None = None) -> list[TokenView]:
    """Read a text and return its tokens; it must fit the model's context."""
    ids = lm.tokenizer.encode(text)
    limit = lm.config.max_position_embeddings - 1
    if not ids:
        raise DataError("the text is empty: give at least one character")
    if len(ids) > limit:
        raise DataError(f"the text has {len(ids)} tokens, limit {limit}: shorten it")
    model, trace = lm.model, Trace()
    tokens_BS = torch.tensor([[lm.tokenizer.bos_id, *ids]], device=model.embed_tokens.weight.device)
    hidden_BSD = model(tokens_BS, budget=lm.check_experts(experts), trace=trace)
    nats_T = nats_of(model, hidden_BSD[0, :-1], tokens_BS[0, 1:]).tolist()
    check_finite(nats_T)
    layers = [_uses(record) for record in trace.gates]
    return [
        TokenView(
            text=lm.tokenizer.token_text(token),
            nats=nats_T[place],
            experts=[uses[place] for uses in layers],
        )
        for place, token in enumerate(ids)
    ]


def write_page(views: Sequence[TokenView], path: Path, first_layer: int = 0) -> Path:
    """Write the tokens as a page of colored text to click through.

    `first_layer` is the number of the first layer with experts.
    """
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = page.from_string(Path(__file__).with_name("xray.html").read_text(encoding="utf-8"))
    # Short keys and numbers: a token of a large model has hundreds of experts.
    shown = [
        {
            "t": view.text,
            "n": round(view.nats, 3),
            "e": [[[use.expert, round(use.weight, 3)] for use in layer] for layer in view.experts],
        }
        for view in views[:PAGE_TOKENS]
    ]
    text = template.render(views=shown, total=len(views), first_layer=first_layer)
    files.write_atomic(path, text.encode())
    return path


def _uses(record: GateRecord) -> list[list[ExpertUse]]:
    # The first position is the token that begins every text.
    rows = zip(
        record.experts_TK[1:].tolist(),
        record.weights_TK[1:].tolist(),
        record.is_used_TK[1:].tolist(),
        strict=True,
    )
    return [
        [
            ExpertUse(expert=expert, weight=weight)
            for expert, weight, is_used in zip(*row, strict=True)
            if is_used
        ]
        for row in rows
    ]
