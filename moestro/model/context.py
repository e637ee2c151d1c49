"""What one forward pass carries from layer to layer beside the tokens themselves.

An argument, never a global: two passes can run at once. Next: block.py.

Shapes: S tokens of a sequence, P rotary pairs, T all tokens of the pass.
"""

from dataclasses import dataclass

from torch import Tensor

from moestro.model.cache import Cache
from moestro.model.trace import Trace
from moestro.ops.latent import AttentionPath


@dataclass(frozen=True, kw_only=True)
class Context:
    """Rotary tables, cache, budget and what is to be recorded.

    `fraction_T` is each token's budget as a share of the way from the fewest experts to the most;
    None takes the most everywhere. Experts multiply their tokens in multiples of `row_multiple`
    rows (ops/rows.py says why).
    """

    cos_SP: Tensor
    sin_SP: Tensor
    cache: Cache
    path: AttentionPath = "auto"
    fraction_T: Tensor | None = None
    trace: Trace | None = None
    row_multiple: int = 1
