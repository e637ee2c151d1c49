"""One logits row into one token. Greedy is exact; sampling repeats itself for a seed.

Next: generate.py. Shapes: V vocabulary.
"""

import torch
from torch import Tensor


def sample(logits_V: Tensor, temperature: float, generator: torch.Generator) -> int:
    """Return the likeliest token at temperature 0, else a draw from the tempered distribution."""
    if temperature == 0:
        return int(logits_V.argmax())
    probabilities_V = (logits_V / temperature).softmax(dim=-1)
    return int(torch.multinomial(probabilities_V, 1, generator=generator))
