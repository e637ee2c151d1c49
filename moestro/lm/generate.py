"""Token after token from one prompt, with the latent cache.

Knows token ids, not text. Next: language_model.py, model/cache.py.

Shapes: B = 1 sequence, S tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from moestro.lm.sampling import sample
from moestro.model.cache import ContiguousCache
from moestro.model.model import Transformer
from moestro.model.trace import Trace


@dataclass(frozen=True)
class Generated:
    """One new token, and the routed experts that its prediction took, mean over layers."""

    token: int
    mean_experts: float | None


@torch.no_grad()
def generate(
    model: Transformer,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    budget: float | None,
) -> Iterator[Generated]:
    """Yield up to `max_tokens` tokens behind a non-empty prompt.

    Whoever iterates decides to stop earlier. Prompt and new tokens together must fit the model's
    context.
    """
    device = model.embed_tokens.weight.device
    capacity = len(prompt) + max_tokens
    assert prompt
    assert capacity <= model.config.max_position_embeddings
    cache = ContiguousCache(
        model.config,
        capacity,
        like=model.embed(torch.zeros(1, 1, dtype=torch.int64, device=device)),
    )
    generator = torch.Generator().manual_seed(seed)
    tokens_BS = torch.tensor([list(prompt)], device=device)
    for _ in range(max_tokens):
        trace = Trace()
        hidden_BSD = model(tokens_BS, budget=budget, cache=cache, trace=trace)
        token = sample(model.logits(hidden_BSD[0, -1]).cpu(), temperature, generator)
        yield Generated(token, _last_experts(trace))
        tokens_BS = torch.tensor([[token]], device=device)


def _last_experts(trace: Trace) -> float | None:
    if not trace.gates:
        return None
    return sum(float(gate.is_used_TK[-1].sum()) for gate in trace.gates) / len(trace.gates)
